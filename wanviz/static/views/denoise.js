// How the video comes out of the noise: what each step predicts, what a word reads in it, and who is at work.
import { Heat, digits, h, middle } from "./kit.js";

const MOST_SHOWN = 24; // steps in the strip
const THUMB_PIXELS = 96;

export function mountDenoising(page) {
  const { data, maps, store } = page;
  const state = store.state;
  const choices = maps.choices("step").filter(({ members }) => members === 1).length === data.steps.length ? data.steps : [];
  const every = Math.max(1, Math.ceil(choices.length / MOST_SHOWN));
  const wide = Math.min(data.video.width, THUMB_PIXELS);
  const high = Math.max(1, Math.round((data.video.height * wide) / data.video.width));
  const heat = new Heat(maps.rows, maps.columns, wide, high);
  const slider = h("input", { type: "range", "data-id": "step-slider", min: -1, max: choices.length - 1, step: 1, value: -1, oninput: () => choose(Number(slider.value)) });
  const said = h("output", { "data-id": "step-said" });
  const box = h("input", { type: "checkbox", "data-id": "predicted", checked: true, onchange: () => store.set({ predicted: box.checked }) });
  const label = h("span");
  const check = h("label", { class: "wv-check", hidden: !data.previews }, box, label);
  const strip = h("div", { class: "wv-steps", "data-id": "steps" });
  const note = h("p", { class: "wv-soft", "data-id": "steps-note" });
  const row = h("div", { class: "wv-transport" }, slider, said);
  const thumbs = [];

  const choose = (place) => store.set({ step: place < 0 ? null : place });

  choices.forEach((step, place) => {
    if (place % every) return;
    const canvas = h("canvas", { width: wide, height: high, class: data.video.width < 320 ? "wv-crisp" : "" });
    const button = h("button", { class: `wv-by-${step.noise_expert || "high"}`, onclick: () => choose(state.step === place ? -1 : place) }, canvas, h("span", {}, String(step.step)));
    thumbs.push({ step, place, canvas, button });
    strip.append(button);
  });

  function draw() {
    const latent = page.latentOf(state.frame);
    const frame = Math.min(middle(data.spans[latent]), data.video.count - 1);
    const [index] = page.shown();
    const found = index === undefined ? [] : thumbs.map(({ place }) => maps.at(index, { layer: null, head: null, step: place }, latent));
    const top = Math.max(0, ...thumbs.map(({ place }) => (index === undefined ? 0 : maps.peak(index, { layer: null, head: null, step: place }))));
    thumbs.forEach(({ canvas, place }, i) => {
      const context = canvas.getContext("2d");
      context.globalCompositeOperation = "source-over";
      page.drawPicture(context, page.picture(frame, place), wide, high);
      if (!found[i]) return;
      context.globalCompositeOperation = "saturation";
      context.fillStyle = "#808080";
      context.fillRect(0, 0, wide, high);
      context.globalCompositeOperation = "source-over";
      heat.one(found[i], [0, top], page.table(), state.opacity, data.alpha);
      context.drawImage(heat.canvas, 0, 0);
    });
  }

  function describe() {
    const { say } = page;
    const step = state.step === null ? null : choices[state.step];
    slider.value = step ? state.step : -1;
    said.textContent = step ? say("stepSaid", step.step, digits(step.sigma), step.noise_expert) : say("allSteps");
    slider.setAttribute("aria-label", say("step"));
    slider.setAttribute("aria-valuetext", said.textContent);
    for (const { step: one, place, button } of thumbs) {
      button.setAttribute("aria-label", say("stepSaid", one.step, digits(one.sigma), one.noise_expert));
      button.setAttribute("aria-pressed", String(state.step === place));
    }
    label.textContent = say("predicted");
    row.hidden = strip.hidden = !choices.length;
    note.textContent = !choices.length ? say("stepsNone") : data.previews ? say("stepsNote") : `${say("stepsMaps")} ${say("stepsWithout")}`;
  }

  store.on((changed) => {
    const any = (...names) => names.some((name) => changed.has(name));
    if (any("language", "step")) describe();
    if (any("language", "frame", "hovered", "pinned", "expert", "opacity", "colors", "predicted", "ready", "complete")) draw();
  });
  return h("div", {}, note, row, check, strip);
}
