// How the video comes out of the noise: what each step predicts, what a word reads in it, and who is at work.
import { Heat, digits, h, middle } from "./kit.js";

const MOST_SHOWN = 24; // steps in the strip
const THUMB_PIXELS = 96;

const alone = (step) => ({ layer: null, head: null, step });

export function mountDenoising(page) {
  const { data, maps, store } = page;
  const state = store.state;
  const { steps } = page;
  const every = Math.max(1, Math.ceil(steps.length / MOST_SHOWN));
  const wide = Math.min(data.video.width, THUMB_PIXELS);
  const high = Math.max(1, Math.round((data.video.height * wide) / data.video.width));
  const heat = new Heat(maps.rows, maps.columns, wide, high);
  const slider = h("input", { type: "range", "data-id": "step-slider", min: -1, max: steps.length - 1, step: 1, value: -1, oninput: () => store.set({ step: steps[slider.value]?.choice ?? null }) });
  const said = h("output", { "data-id": "step-said" });
  const box = h("input", { type: "checkbox", "data-id": "predicted", checked: true, onchange: () => store.set({ predicted: box.checked }) });
  const label = h("span");
  const check = h("label", { class: "wv-check", hidden: !data.previews || !steps.length }, box, label);
  const strip = h("div", { class: "wv-steps", "data-id": "steps" });
  const note = h("p", { class: "wv-soft", "data-id": "steps-note" });
  const row = h("div", { class: "wv-transport" }, slider, said);
  const thumbs = [];

  steps.forEach((step, place) => {
    if (place % every) return;
    const { choice } = step;
    const canvas = h("canvas", { width: wide, height: high, class: data.video.width < 320 ? "wv-crisp" : "" });
    const button = h("button", { class: `wv-by-${step.noise_expert || "high"}`, onclick: () => store.set({ step: state.step === choice ? null : choice }) }, canvas, h("span", {}, String(step.step)));
    thumbs.push({ step, choice, canvas, button });
    strip.append(button);
  });

  function draw() {
    const latent = page.latentOf(state.frame);
    const frame = Math.min(middle(data.spans[latent]), data.video.count - 1);
    const [index] = page.shown();
    const found = index === undefined ? [] : thumbs.map(({ choice }) => maps.at(index, alone(choice), latent));
    const top = Math.max(0, ...thumbs.map(({ choice }) => (index === undefined ? 0 : maps.peak(index, alone(choice)))));
    thumbs.forEach(({ canvas, choice }, i) => {
      const context = canvas.getContext("2d");
      context.globalCompositeOperation = "source-over";
      page.drawPicture(context, page.picture(frame, choice), wide, high);
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
    const place = steps.findIndex(({ choice }) => choice === state.step);
    const step = steps[place];
    slider.value = place;
    if (state.step === null) said.textContent = say("allSteps");
    else said.textContent = step ? say("stepSaid", step.step, digits(step.sigma), step.noise_expert) : page.sliceName(alone(state.step));
    slider.setAttribute("aria-label", say("step"));
    slider.setAttribute("aria-valuetext", said.textContent);
    for (const { step: one, choice, button } of thumbs) {
      button.setAttribute("aria-label", say("stepSaid", one.step, digits(one.sigma), one.noise_expert));
      button.setAttribute("aria-pressed", String(state.step === choice));
    }
    label.textContent = say("predicted");
    row.hidden = strip.hidden = !steps.length;
    note.textContent = sentences().map((key) => say(key)).join(" ");
  }

  /** What the strip shows, and what it lacks. */
  function sentences() {
    const stored = maps.stored("step");
    const whole = stored.length > 0 && stored.every(({ members }) => members === 1);
    const grouped = page.kernel ? "stepsAsked" : "stepsGrouped";
    const reads = whole ? "stepsMaps" : page.kept("step") ? grouped : "stepsNone";
    if (!steps.length) return [whole ? "missing" : reads];
    return data.previews ? ["stepsPredicted", reads, "stepsStrip"] : [reads, "stepsStrip", "stepsWithout"];
  }

  store.on((changed) => {
    const any = (...names) => names.some((name) => changed.has(name));
    if (any("language", "step")) describe();
    if (any("language", "frame", "hovered", "pinned", "expert", "opacity", "colors", "predicted", "ready", "complete", "arrived")) draw();
  });
  return h("div", {}, note, row, check, strip);
}
