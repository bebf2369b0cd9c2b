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

// JSON's texts and numbers are Python's, its truth is not.
const python = (value) => (typeof value === "boolean" ? (value ? "True" : "False") : JSON.stringify(value));

export function pythonCode(video) {
  const extras = Object.entries(own(video)).map(([name, value]) => `        ${python(name)}: ${python(value)},`);
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
client.videos.download_content(video.id).write_to_file("clip.mp4")
`;
}

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function curlCode(video) {
  const key = hasKey() ? ` -H 'Authorization: Bearer YOUR KEY'` : "";
  const body = JSON.stringify({ prompt: video.prompt, model: video.model, size: video.size, ...own(video) });
  return `curl ${location.origin}/v1/videos${key} -H 'Content-Type: application/json' -d ${shell(body)}
# and when it is completed, with the id of the answer:
curl ${location.origin}/v1/videos/ID/content${key} -o clip.mp4
`;
}
