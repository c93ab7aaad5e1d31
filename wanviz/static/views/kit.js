// What all views share: making elements, reading numbers, painting maps. Untrusted text enters only as text.

export const AXES = ["layer", "head", "step"];
export const SLICE = [...AXES, "explained", "arrived"]; // what changes which slice is seen, or whether it is there
export const PIN_COLORS = [[213, 94, 0], [0, 158, 115], [86, 180, 233], [240, 228, 66], [204, 121, 167]]; // Okabe and Ito
const FOCUSABLE = new Set(["button", "select", "input", "textarea", "a", "summary"]);
const SVG = "http://www.w3.org/2000/svg";
const CONTROL = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/;

/** An element: h("button", { class: "wv-chip", onclick: go, "aria-label": "…" }, "text", child, …). */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  // JupyterLab takes keys for its own shortcuts unless each focusable element says that it wants them.
  if (FOCUSABLE.has(tag) || "tabindex" in attributes) element.setAttribute("data-lm-suppress-shortcuts", "true");
  if (tag === "button") element.type = "button";
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** An element of a drawing, added to its parent. */
export function shape(parent, name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

export function drawing(wide, high, label) {
  const svg = document.createElementNS(SVG, "svg");
  for (const [key, value] of Object.entries({ viewBox: `0 0 ${wide} ${high}`, role: "img", "aria-label": label })) svg.setAttribute(key, value);
  return svg;
}

export function icon(path) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  shape(svg, "path", { d: path });
  return svg;
}

/** Adds text in which invisible and text-turning characters are shown by their number, so that none does its work. */
export function addText(parent, text, name) {
  for (const part of text.split(new RegExp(`(${CONTROL.source})`))) {
    if (!part) continue;
    const control = CONTROL.test(part);
    const shown = control ? `U+${part.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}` : part;
    parent.append(h("span", { class: control ? "wv-control" : name }, shown));
  }
}

export function bytes(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

/** Bytes that were deflated and written as base64. */
export async function inflated(text) {
  const stream = new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

export const digits = (x) => (x === 0 ? "0" : x.toPrecision(2).includes("e") ? x.toExponential(1) : String(Number(x.toPrecision(2))));
export const percent = (x) => (x > 0 && x < 0.0005 ? "< 0.1 %" : `${(100 * x).toFixed(1)} %`);
export const shortSpan = ([first, end]) => (first === end ? String(first) : `${first}–${end}`);
export const middle = ([first, end]) => first + ((end - first + 1) >> 1);
export const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

/** What the views agree on. `set` tells everybody who listens what has changed. */
export class Store {
  constructor(state) {
    this.state = state;
    this.listeners = new Set();
  }
  on(listener) {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }
  set(change) {
    const changed = new Set(Object.keys(change).filter((key) => this.state[key] !== change[key]));
    if (!changed.size) return;
    Object.assign(this.state, change);
    for (const listener of this.listeners) listener(changed, this.state);
  }
}

/** Maps in bytes, each slice with a unit of its own: mass = level · unit. Index 0 of an axis is the mean over it. */
export class Maps {
  constructor(families, explanation, grid, most, missing) {
    Object.assign(this, { families, explanation, most, missing, finer: {}, more: new Map() });
    [this.frames, this.rows, this.columns] = grid;
    this.cells = this.rows * this.columns;
  }
  static async read(data) {
    const numbers = async ({ levels, units }) => ({ levels: await inflated(levels), units: new Float32Array((await inflated(units)).buffer) });
    const families = [];
    for (const family of data.maps.families) {
      families.push({ ...family, ...(await numbers(family)), sizes: family.choices.map((list) => list.length + 1) });
    }
    const explanation = data.explanation && (await numbers(data.explanation));
    return new Maps(families, explanation, data.grid, data.maps.most, data.maps.missing);
  }
  /** The choices of an axis whose maps the page has, [{ name, first, members }]. */
  stored(axis) {
    const family = this.families.find(({ axes }) => axes.includes(axis));
    return family ? family.choices[family.axes.indexOf(axis)] : [];
  }
  /** All choices of an axis: those that are stored; after them single ones that something else can show. */
  choices(axis) {
    return [...this.stored(axis), ...(this.finer[axis] ?? [])];
  }
  /** Keeps what a kernel gave for a selection. */
  add(chosen, levels, units) {
    this.more.set(this.key(chosen), { levels, units });
  }
  key(chosen) {
    return AXES.map((axis) => chosen[axis] ?? "").join();
  }
  /** Where a selection { layer, head, step } lies, or the explanation: a family and a place in it; null if the page does not have it. */
  find(chosen) {
    if (chosen.explained) return { family: this.explanation, place: 0, count: 1 };
    const asked = AXES.filter((axis) => chosen[axis] !== null && chosen[axis] !== undefined);
    const family = this.families.find((one) => asked.every((axis) => chosen[axis] < (one.choices[one.axes.indexOf(axis)]?.length ?? 0)));
    if (!family) return this.more.has(this.key(chosen)) ? { family: this.more.get(this.key(chosen)), place: 0, count: 1 } : null;
    let place = 0;
    family.axes.forEach((axis, i) => {
      place = place * family.sizes[i] + (asked.includes(axis) ? chosen[axis] + 1 : 0);
    });
    return { family, place, count: family.sizes.reduce((a, b) => a * b, 1) };
  }
  /** One map: { levels, unit } of a subject in one latent frame; of all frames where latent is null. */
  at(subject, chosen, latent) {
    const found = this.find(chosen);
    if (!found) return null;
    const slice = subject * found.count + found.place;
    const size = this.frames * this.cells;
    const from = slice * size + (latent === null ? 0 : latent * this.cells);
    const levels = found.family.levels.subarray(from, from + (latent === null ? size : this.cells));
    return levels[0] === this.missing ? null : { levels, unit: found.family.units[slice] };
  }
  /** Highest mass of a subject in a clip. */
  peak(subject, chosen) {
    const map = this.at(subject, chosen, null);
    return map ? map.unit * this.most : 0;
  }
}

function neighbours(count, pixels) {
  return Array.from({ length: pixels }, (_, i) => {
    const at = clamp(((i + 0.5) * count) / pixels - 0.5, 0, count - 1);
    const first = Math.floor(at);
    return [first, Math.min(first + 1, count - 1), at - first];
  });
}

/** Paints maps, interpolated between the centres of their cells. */
export class Heat {
  constructor(rows, columns, width, height) {
    this.canvas = Object.assign(document.createElement("canvas"), { width, height });
    this.context = this.canvas.getContext("2d");
    this.image = this.context.createImageData(width, height);
    this.colors = new Uint32Array(this.image.data.buffer); // alpha, blue, green, red from the highest byte on
    this.down = neighbours(rows, height);
    const across = neighbours(columns, width);
    this.left = Int32Array.from(across, ([first]) => first);
    this.right = Int32Array.from(across, ([, second]) => second);
    this.weight = Float32Array.from(across, ([, , weight]) => weight);
    this.columns = columns;
    this.palette = { of: [], colors: new Uint32Array(256) };
  }
  /** One map in the colours of a table of 256: color and cover grow with the mass. */
  one(map, [low, high], table, opacity, [least, most]) {
    const shades = this.shades(table, opacity, least, most);
    const factor = high > low ? (255 * map.unit) / (high - low) : 0;
    const from = high > low ? (255 * low) / (high - low) - 0.5 : -0.5; // rounded when it is cut to a whole number
    this.rows([map], ([line], at) => {
      for (let x = 0; x < this.left.length; x += 1) {
        const left = line[this.left[x]];
        const place = (left + (line[this.right[x]] - left) * this.weight[x]) * factor - from;
        this.colors[at + x] = shades[place < 0 ? 0 : place > 255 ? 255 : place | 0];
      }
    });
  }
  /** The colours of a table, each with its cover. */
  shades(table, opacity, least, most) {
    const of = [table, opacity, least, most];
    if (of.some((value, i) => value !== this.palette.of[i])) {
      this.palette.of = of;
      for (let i = 0; i < 256; i += 1) this.palette.colors[i] = packed(table[3 * i], table[3 * i + 1], table[3 * i + 2], opacity * (least + ((most - least) * i) / 255));
    }
    return this.palette.colors;
  }
  /** Several maps, each in a colour of its own, each from 0 to its top. */
  several(maps, tops, shades, opacity, most) {
    this.fill((values, put) => {
      let [red, green, blue, sum, top] = [0, 0, 0, 1e-9, 0];
      for (let i = 0; i < values.length; i += 1) {
        const place = tops[i] > 0 ? clamp((values[i] * maps[i].unit) / tops[i], 0, 1) : 0;
        red += place * shades[i][0];
        green += place * shades[i][1];
        blue += place * shades[i][2];
        sum += place;
        top = Math.max(top, place);
      }
      put(red / sum, green / sum, blue / sum, opacity * most * top);
    }, maps);
  }
  /** paint(levels of the maps at one pixel, put) calls put(red, green, blue, alpha), for every pixel. */
  fill(paint, maps) {
    const values = new Array(maps.length);
    let pixel = 0;
    const put = (...color) => (this.colors[pixel] = packed(...color));
    this.rows(maps, (lines, at) => {
      for (let x = 0; x < this.left.length; x += 1) {
        for (let i = 0; i < lines.length; i += 1) {
          const left = lines[i][this.left[x]];
          values[i] = left + (lines[i][this.right[x]] - left) * this.weight[x];
        }
        pixel = at + x;
        paint(values, put);
      }
    });
  }
  /** Calls paint(levels of the maps along one line of pixels, a number for each column of cells; where the line starts). */
  rows(maps, paint) {
    const lines = maps.map(() => new Float32Array(this.columns));
    this.down.forEach(([upper, lower, weight], y) => {
      maps.forEach(({ levels }, i) => {
        for (let c = 0; c < this.columns; c += 1) {
          const above = levels[upper * this.columns + c];
          lines[i][c] = above + (levels[lower * this.columns + c] - above) * weight;
        }
      });
      paint(lines, y * this.left.length);
    });
    this.context.putImageData(this.image, 0, 0);
  }
}

const packed = (red, green, blue, alpha) => (Math.round(255 * alpha) << 24) | (Math.round(blue) << 16) | (Math.round(green) << 8) | Math.round(red);

/** Exchanges the entries of a select and keeps what was chosen. */
export function options(select, list, chosen = select.value) {
  select.replaceChildren(...list.map(([value, text]) => new Option(text, value, false, String(value) === String(chosen))));
}

export const colorAt = (table, place) => {
  const at = Math.round(clamp(place, 0, 1) * 255) * 3;
  return `rgb(${table[at]},${table[at + 1]},${table[at + 2]})`;
};
