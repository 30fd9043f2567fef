"use strict";
// One clock for every video on the page: play or pause all, scrub all. Without this script each has its own controls.
(() => {
  const videos = [...document.querySelectorAll(".panes video")];
  const player = document.querySelector(".player");
  if (!player || !videos.length) return;
  const button = player.querySelector("button");
  const slider = player.querySelector("input");
  const output = player.querySelector("output");
  const frames = Number(player.dataset.frames);
  const fps = Number(player.dataset.fps);
  const leader = videos[0];
  let playing = false;
  let wished = 0;

  const frameOf = (video) => Math.min(frames - 1, Math.max(0, Math.floor(video.currentTime * fps + 1e-3)));
  const middle = (frame) => (frame + 0.5) / fps;
  const tell = (frame) => {
    slider.value = frame;
    slider.setAttribute("aria-valuetext", `frame ${frame + 1} of ${frames}`);
    output.textContent = `frame ${frame + 1} of ${frames}`;
  };
  const seek = (frame) => {
    wished = frame;
    for (const video of videos) video.currentTime = middle(frame);
    tell(frame);
  };
  const set = (on) => {
    playing = on;
    button.textContent = on ? "Pause all" : "Play all";
    for (const video of videos) {
      if (on) video.play().catch(() => {});
      else video.pause();
    }
    if (!on) seek(frameOf(leader));
  };

  for (const video of videos) {
    video.removeAttribute("controls");
    video.loop = true;
    video.muted = true;
    video.addEventListener("loadeddata", () => { if (!playing) video.currentTime = middle(wished); }, { once: true });
  }
  slider.max = frames - 1;
  slider.addEventListener("input", () => {
    const frame = Number(slider.value);
    if (playing) set(false);
    seek(frame);
  });
  button.addEventListener("click", () => set(!playing));
  const follow = () => {
    if (playing && leader.readyState >= 2) {
      tell(frameOf(leader));
      const length = frames / fps;
      for (const video of videos) {
        const apart = Math.abs(video.currentTime - leader.currentTime);
        if (Math.min(apart, length - apart) > 1 / fps) video.currentTime = leader.currentTime;
      }
    }
    setTimeout(() => requestAnimationFrame(follow), 120);
  };
  player.hidden = false;
  tell(0);
  follow();
  set(!window.matchMedia("(prefers-reduced-motion: reduce)").matches);
})();
