// Films of one scene under two policies: both are played, paused and stepped together; each has its own controls, too.
"use strict";
for (const film of document.querySelectorAll(".film")) {
  const videos = [...film.querySelectorAll("video")], hz = Number(film.dataset.hz);
  if (!videos.length) continue;
  const button = (text, act) => {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    made.addEventListener("click", act);
    return made;
  };
  const isPlaying = (video) => !video.paused && !video.ended;
  // To the middle of a picture, so that rounding shows neither neighbour.
  const step = (by) => videos.forEach((video) => {
    video.pause();
    const picture = Math.floor(video.currentTime * hz + 0.01) + by;
    video.currentTime = Math.max(0, Math.min((picture + 0.5) / hz, video.duration - 0.5 / hz));
  });
  const play = button("Play both", () => {
    if (videos.some(isPlaying)) return videos.forEach((video) => video.pause());
    const again = videos.every((video) => video.ended);
    videos.forEach((video) => {
      if (again) video.currentTime = 0;
      if (!video.ended) video.play();
    });
  });
  for (const video of videos) {
    for (const name of ["play", "pause", "ended"]) {
      video.addEventListener(name, () => { play.textContent = videos.some(isPlaying) ? "Pause" : "Play both"; });
    }
  }
  const bar = document.createElement("div");
  bar.className = "browser-bar";
  bar.append(button("Step back", () => step(-1)), play, button("Step", () => step(1)));
  film.append(bar);
}
