// A job as a program that makes it again.

import { hasKey } from "./api.js";

const own = (video) => ({
  negative_prompt: video.negative_prompt,
  seed: video.seed,
  frames: video.frames,
  fps: video.fps,
  steps: video.steps,
  guidance_scale: video.guidance_scale,
  scheduler: video.scheduler,
  loop: video.loop,
});

// What is saved of a job, and as what.
const result = (video) => (video.frames === 1 ? ["thumbnail", "image.png"] : ["video", "clip.mp4"]);

// JSON's texts and numbers are Python's, its truth is not.
const python = (value) => (typeof value === "boolean" ? (value ? "True" : "False") : JSON.stringify(value));

export function pythonCode(video) {
  const extras = Object.entries(own(video)).map(([name, value]) => `        ${python(name)}: ${python(value)},`);
  const [variant, file] = result(video);
  return `from openai import OpenAI

client = OpenAI(base_url=${python(`${location.origin}/v1`)}, api_key=${hasKey() ? '"YOUR KEY"' : '"none"'})
video = client.videos.create_and_poll(
    prompt=${python(video.prompt)},
    model=${python(video.model)},
    size=${python(video.size)},
    extra_body={
${extras.join("\n")}
    },
)
if video.status != "completed":
    raise SystemExit(video.error.message)
client.videos.download_content(video.id, variant="${variant}").write_to_file("${file}")
`;
}

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

// In parentheses, so that it ends itself and not the terminal that it is pasted into.
export function curlCode(video) {
  const [variant, file] = result(video);
  const key = hasKey() ? " -H 'Authorization: Bearer YOUR KEY'" : "";
  const body = JSON.stringify({ prompt: video.prompt, model: video.model, size: video.size, ...own(video) });
  return `(
ask() { curl -sS --fail-with-body${key} "$@"; }
videos=${location.origin}/v1/videos
job=$(ask "$videos" -H 'Content-Type: application/json' -d ${shell(body)}) || { printf '%s\\n' "$job" >&2; exit 1; }
id=$(printf '%s' "$job" | sed 's/^{"id":"\\([^"]*\\)".*/\\1/')
while :; do
  case $job in
    *'"status":"completed"'*) break ;;
    *'"status":"failed"'*) printf '%s\\n' "$job" >&2; exit 1 ;;
  esac
  sleep 1
  job=$(ask "$videos/$id") || exit 1
done
ask "$videos/$id/content?variant=${variant}" -o ${file}
)
`;
}
