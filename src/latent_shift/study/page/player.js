// Two clips, exactly in step: one clock says which frame of each is drawn from its sheets.

async function load(clip) {
  const sheets = await Promise.all(clip.sheets.map(async (address) => {
    const image = new Image();
    image.src = address;
    await image.decode();
    return image;
  }));
  return { ...clip, images: sheets };
}

function draw(canvas, clip, seconds) {
  const frame = Math.min(Math.floor(seconds * clip.fps + 1e-6), clip.frames - 1); // the shorter clip waits at its end
  if (canvas.dataset.frame === String(frame)) return;
  canvas.dataset.frame = frame;
  const image = clip.images[Math.floor(frame / clip.frames_per_sheet)];
  const place = frame % clip.frames_per_sheet;
  const x = (place % clip.columns) * (clip.width + clip.gap);
  const y = Math.floor(place / clip.columns) * (clip.height + clip.gap);
  canvas.getContext("2d").drawImage(image, x, y, clip.width, clip.height, 0, 0, clip.width, clip.height);
}

export class Player {
  #clips = [];
  #canvases;
  #seconds = 0;
  #last = 0;
  #request = 0;
  paused = false;

  constructor(...canvases) {
    this.#canvases = canvases;
  }

  // Shows nothing until all clips are there; gives false if other clips were asked for meanwhile.
  async show(...clips) {
    this.stop();
    const request = ++this.#request;
    const loaded = await Promise.all(clips.map(load));
    if (request !== this.#request) return false;
    this.#clips = loaded;
    loaded.forEach((clip, index) => {
      const canvas = this.#canvases[index];
      [canvas.width, canvas.height] = [clip.width, clip.height];
      delete canvas.dataset.frame;
    });
    [this.#seconds, this.#last, this.paused] = [0, performance.now(), false];
    this.#tick(this.#last);
    return true;
  }

  stop() {
    this.#request += 1;
    this.#clips = [];
    for (const canvas of this.#canvases) {
      canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
      delete canvas.dataset.frame;
    }
  }

  #tick(now) {
    if (this.#clips.length === 0) return;
    const turn = Math.max(...this.#clips.map((clip) => clip.frames / clip.fps));
    if (!this.paused) this.#seconds = (this.#seconds + Math.max(0, now - this.#last) / 1000) % turn;
    this.#last = now;
    this.#clips.forEach((clip, index) => draw(this.#canvases[index], clip, this.#seconds));
    const request = this.#request;
    requestAnimationFrame((later) => request === this.#request && this.#tick(later));
  }
}
