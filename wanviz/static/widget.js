// Draws the views in a cell of a notebook, and asks the kernel for slices that they lack.

/** The kernel behind a widget: ask(places) gives { levels, units, frames } or { error }. */
function linked(model, side, waiting) {
  return {
    branch: (name) => model.send({ side, branch: name }),
    ask: (places) => new Promise((answer) => {
      const id = String(Math.random()); // answers go to every view of a model: each must know its own
      waiting.set(id, answer);
      model.send({ side, id, ask: places });
    }),
  };
}

// What a page is told again when another branch takes its place; words and slices are its own.
const CARRIED = ["frame", "opacity", "scale", "colors", "speed", "predicted", "order", "bright", "baseline"];

const copied = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength).slice();

export default {
  async render({ model, el }) {
    const waiting = new Map();
    const kernels = [0, 1].map((side) => linked(model, side, waiting));
    const native = (document.documentElement.lang || navigator.language || "en").startsWith("zh") ? "zh" : "en";
    const answered = (content, buffers) => {
      const { id, error, frames } = content;
      waiting.get(id)?.(error ? { error } : { levels: copied(buffers[0]), units: new Float32Array(copied(buffers[1]).buffer), frames });
      waiting.delete(id);
    };
    let pages = [];
    const mount = async () => {
      const language = el.querySelector(".wv")?.lang || native;
      const focused = el.querySelector("[data-id=branch]:focus");
      const root = document.createElement("div");
      const style = document.createElement("style");
      style.textContent = model.get("font");
      const box = document.createElement("div");
      box.className = "wv-in-cell-output";
      box.append(style, root);
      el.replaceChildren(box);
      const { first, second } = model.get("data");
      const before = pages.map((page) => page.store.state);
      pages = await (second ? mountComparison(root, first, second, { language, kernels }) : Promise.all([mountDashboard(root, first, { language, kernel: kernels[0] })]));
      before.forEach((state, i) => {
        pages[i].store.set(Object.fromEntries(CARRIED.map((name) => [name, state[name]])));
        if (state.explained) pages[i].explain(true);
      });
      if (focused) root.querySelector("[data-id=branch]").focus();
      root.dataset.ready = "true";
    };
    model.on("msg:custom", answered);
    model.on("change:data", mount);
    await mount();
    return () => {
      model.off("msg:custom", answered);
      model.off("change:data", mount);
    };
  },
};
