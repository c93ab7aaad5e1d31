// What all views share: making elements, reading numbers, painting maps. Untrusted text enters only as text.

export const AXES = ["layer", "head", "step"];
export const SLICE = [...AXES, "arrived"]; // what changes which slice is seen, or whether it is there
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
  constructor(families, grid, most, missing) {
    Object.assign(this, { families, most, missing, finer: {}, more: new Map() });
    [this.frames, this.rows, this.columns] = grid;
    this.cells = this.rows * this.columns;
  }
  static async read(data) {
    const families = [];
    for (const family of data.maps.families) {
      const levels = await inflated(family.levels);
      const units = new Float32Array((await inflated(family.units)).buffer);
      families.push({ ...family, levels, units, sizes: family.choices.map((list) => list.length + 1) });
    }
    return new Maps(families, data.grid, data.maps.most, data.maps.missing);
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
  /** Where a selection { layer, head, step } lies: a family and a place in it; null if the page does not have it. */
  find(chosen) {
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
    this.down = neighbours(rows, height);
    this.across = neighbours(columns, width);
    this.columns = columns;
  }
  /** One map in the colours of a table of 256: color and cover grow with the mass. */
  one(map, [low, high], table, opacity, [least, most]) {
    const factor = high > low ? 1 / (high - low) : 0;
    this.fill((values, put) => {
      const place = clamp((values[0] * map.unit - low) * factor, 0, 1);
      const color = Math.round(place * 255) * 3;
      put(table[color], table[color + 1], table[color + 2], opacity * (least + (most - least) * place));
    }, [map]);
  }
  /** Several maps, each in a colour of its own, each from 0 to its top. */
  several(maps, tops, shades, opacity, most) {
    this.fill((values, put) => {
      let [red, green, blue, sum, top] = [0, 0, 0, 1e-9, 0];
      values.forEach((value, i) => {
        const place = tops[i] > 0 ? clamp((value * maps[i].unit) / tops[i], 0, 1) : 0;
        red += place * shades[i][0];
        green += place * shades[i][1];
        blue += place * shades[i][2];
        sum += place;
        top = Math.max(top, place);
      });
      put(red / sum, green / sum, blue / sum, opacity * most * top);
    }, maps);
  }
  fill(paint, maps) {
    const context = this.canvas.getContext("2d");
    const image = context.createImageData(this.canvas.width, this.canvas.height);
    const values = new Array(maps.length);
    let at = 0;
    const put = (red, green, blue, alpha) => {
      image.data[at++] = red;
      image.data[at++] = green;
      image.data[at++] = blue;
      image.data[at++] = Math.round(255 * alpha);
    };
    for (const [r0, r1, wr] of this.down) {
      for (const [c0, c1, wc] of this.across) {
        for (let i = 0; i < maps.length; i += 1) {
          const { levels } = maps[i];
          const upper = levels[r0 * this.columns + c0] * (1 - wc) + levels[r0 * this.columns + c1] * wc;
          const lower = levels[r1 * this.columns + c0] * (1 - wc) + levels[r1 * this.columns + c1] * wc;
          values[i] = upper * (1 - wr) + lower * wr;
        }
        paint(values, put);
      }
    }
    context.putImageData(image, 0, 0);
  }
}

/** Exchanges the entries of a select and keeps what was chosen. */
export function options(select, list, chosen = select.value) {
  select.replaceChildren(...list.map(([value, text]) => new Option(text, value, false, String(value) === String(chosen))));
}

export const colorAt = (table, place) => {
  const at = Math.round(clamp(place, 0, 1) * 255) * 3;
  return `rgb(${table[at]},${table[at + 1]},${table[at + 2]})`;
};
