// How frames look at frames: the matrix of a layer, a head or a step, with what distance alone explains.
import { AXES, SLICE, clamp, colorAt, digits, drawing, h, middle, shape, shortSpan } from "./kit.js";

const PAIR_PIXELS = 192; // across, of each of the two frames

export function mountFrames(page) {
  const { data, store } = page;
  const state = store.state;
  const home = h("div", { class: "wv-frames", "data-id": "frames" });
  const note = h("p", { class: "wv-note", "data-id": "frames-note", "aria-live": "polite" });
  const cursor = { q: 0, k: 0 }; // the cell that the keyboard is at
  const box = h("input", { type: "checkbox", "data-id": "baseline", onchange: () => store.set({ baseline: box.checked }) });
  const label = h("span");
  const pair = h("div", { class: "wv-pair", hidden: true }, ...[0, 1].map(() => h("canvas", { width: PAIR_PIXELS, height: Math.round((PAIR_PIXELS * data.video.height) / data.video.width) })));
  const linksNote = h("p", { class: "wv-soft", "data-id": "links-note" });
  const count = data.spans.length;

  /** The matrix of the selection and its standard errors: { mass, stderr }; null if the page has none. */
  function matrix() {
    if (!data.frames) return null;
    const asked = AXES.filter((axis) => state[axis] !== null);
    const family = data.frames.find((one) => asked.every((axis) => state[axis] < (one.choices[one.axes.indexOf(axis)]?.length ?? 0)));
    if (!family) return page.frames.get(page.maps.key(state)) ?? null;
    let place = 0;
    family.axes.forEach((axis, i) => (place = place * (family.choices[i].length + 1) + (state[axis] === null ? 0 : state[axis] + 1)));
    return { mass: family.mass[place], stderr: family.stderr?.[place] };
  }

  /** Mean mass of all pairs of frames that are as far apart. */
  function byDistance(mass) {
    const sums = new Map();
    mass.forEach((row, q) => row.forEach((value, k) => {
      if (value === null) return;
      const [sum, pairs] = sums.get(Math.abs(q - k)) ?? [0, 0];
      sums.set(Math.abs(q - k), [sum + value, pairs + 1]);
    }));
    return (q, k) => {
      const [sum, pairs] = sums.get(Math.abs(q - k));
      return sum / pairs;
    };
  }

  function showPair(q, k) {
    pair.hidden = q === null;
    if (q === null) return;
    [q, k].forEach((latent, i) => page.drawFrame(pair.children[i].getContext("2d"), Math.min(middle(data.spans[latent]), data.video.count - 1), pair.children[i].width, pair.children[i].height));
    if (data.links) drawLinks(q, k);
  }

  /** Places of frame q as dots, and in frame k where each looks most: the larger, the more it looks there. */
  function drawLinks(q, k) {
    const { places, cells, mass } = data.links;
    const [, rows, columns] = data.grid;
    const top = Math.max(1e-9, ...mass[q].map((line) => line[k] ?? 0));
    places.forEach(([row, column], place) => {
      const share = mass[q][place][k];
      if (!share) return; // it does not look there, or that was not computed
      const cell = cells[q][place][k];
      const ends = [[row, column, 1], [Math.floor(cell / columns), cell % columns, Math.sqrt(share / top)]];
      ends.forEach(([r, c, size], i) => {
        const { width, height } = pair.children[i];
        const context = pair.children[i].getContext("2d");
        context.beginPath();
        context.arc(((c + 0.5) * width) / columns, ((r + 0.5) * height) / rows, Math.max(0.5, 8 * size), 0, 2 * Math.PI);
        context.fillStyle = colorAt(page.tables.viridis, place / Math.max(1, places.length - 1));
        context.fill();
        context.strokeStyle = "#fff";
        context.stroke();
      });
    });
  }

  function show() {
    const { say } = page;
    label.textContent = say("baseline");
    linksNote.textContent = data.frames ? say(data.links ? "linksNote" : "linksNone") : "";
    const found = matrix();
    box.parentElement.hidden = !found;
    if (!found) {
      home.replaceChildren();
      note.textContent = data.frames ? page.absence() : say("noFrames");
      return;
    }
    const { mass, stderr } = found;
    const explained = state.baseline ? byDistance(mass) : () => 0;
    const rest = mass.map((row, q) => row.map((value, k) => (value === null ? null : value - explained(q, k))));
    const known = rest.flat().filter((value) => value !== null).map(Math.abs);
    const most = state.baseline ? Math.max(1e-9, ...known) : 1;
    const fill = (value) => (state.baseline ? colorAt(page.diverging, 0.5 + value / (2 * most)) : colorAt(page.table(), value));
    const worst = stderr && Math.max(...stderr.flat().map((value) => value ?? 0));
    const words = (state.baseline ? say("baselineNote") : say("framesNote", page.sliceName())) + (mass.flat().includes(null) ? say("hatched") : "") + (worst ? say("sampled", digits(worst)) : "");
    note.textContent = words;
    const size = 230 / count;
    const svg = drawing(280, 256, say("framesKeys"));
    svg.setAttribute("tabindex", "0");
    svg.setAttribute("data-lm-suppress-shortcuts", "true");
    const tell = []; // by row and column, what a cell has to say
    const frame = { x: 50, y: 0, width: size, height: size, class: "wv-cursor", visibility: "hidden" };
    const every = Math.ceil(count / 8);
    rest.forEach((line, q) => {
      const y = q * size;
      if (q % every === 0) {
        shape(svg, "text", { x: 42, y: y + size / 2 + 4, "text-anchor": "end" }, shortSpan(data.spans[q]));
        shape(svg, "text", { x: 50 + (q + 0.5) * size, y: 248, "text-anchor": "middle" }, shortSpan(data.spans[q]));
      }
      line.forEach((value, k) => {
        const x = 50 + k * size;
        const cell = shape(svg, "rect", { x, y, width: size, height: size });
        if (value === null) {
          cell.setAttribute("class", "wv-hatched");
          for (let i = 1; i < 8; i += 1) {
            const a = (i * size) / 4;
            shape(svg, "line", { x1: x + Math.max(0, a - size), y1: y + Math.min(a, size), x2: x + Math.min(a, size), y2: y + Math.max(0, a - size), class: "wv-hatch-line" });
          }
        } else {
          cell.setAttribute("fill", fill(value));
          if (count <= 8) {
            const pale = state.baseline ? Math.abs(value) < 0.6 * most : value >= 0.6;
            shape(svg, "text", { x: x + size / 2, y: y + size / 2 + 4, "text-anchor": "middle", class: "wv-in-cell" }, value.toFixed(2)).style.fill = pale ? "#000" : "#fff";
          }
        }
        const error = stderr && stderr[q][k] !== null ? say("give", digits(stderr[q][k])) : "";
        const said = say("pair", say("span", data.spans[q]), say("span", data.spans[k]), value === null ? say("notComputed") : digits(value) + error);
        (tell[q] ??= [])[k] = said;
        cell.addEventListener("pointerenter", () => ((note.textContent = said), showPair(q, k)));
        cell.addEventListener("pointerleave", () => ((note.textContent = words), showPair(null)));
      });
    });
    const mark = shape(svg, "rect", frame);
    const at = (q, k) => {
      Object.assign(cursor, { q: clamp(q, 0, count - 1), k: clamp(k, 0, count - 1) });
      mark.setAttribute("x", 50 + cursor.k * size);
      mark.setAttribute("y", cursor.q * size);
      mark.setAttribute("visibility", "visible");
      note.textContent = tell[cursor.q][cursor.k];
      showPair(cursor.q, cursor.k);
    };
    svg.addEventListener("focus", () => svg.matches(":focus-visible") && at(cursor.q, cursor.k));
    svg.addEventListener("blur", () => (mark.setAttribute("visibility", "hidden"), (note.textContent = words), showPair(null)));
    svg.addEventListener("keydown", (event) => {
      const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [0, 0];
      if (!(down || right)) return;
      at(cursor.q + down, cursor.k + right);
      event.preventDefault();
      event.stopPropagation();
    });
    home.replaceChildren(svg);
  }

  store.on((changed) => ["language", "colors", "baseline", "ready", ...SLICE].some((name) => changed.has(name)) && show());
  return h("div", {}, home, h("label", { class: "wv-check" }, box, label), note, pair, linksNote);
}
