// Starts the views on a page of their own: one trace, or two beside each other.
const { first, second } = JSON.parse(document.getElementById("data").textContent);
const root = document.getElementById("app");
const how = { language: (navigator.language || "en").startsWith("zh") ? "zh" : "en", keys: document };
document.title = `${first.prompt.slice(0, 80)} – wanviz`;
(second ? mountComparison(root, first, second, how) : mountDashboard(root, first, how)).then(() => {
  document.documentElement.dataset.ready = "true";
});
