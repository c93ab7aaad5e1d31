// Starts the views on a page of their own.
const data = JSON.parse(document.getElementById("data").textContent);
const language = (navigator.language || "en").startsWith("zh") ? "zh" : "en";
document.title = `${data.prompt.slice(0, 80)} – wanviz`;
mountDashboard(document.getElementById("app"), data, { language, keys: document }).then(() => {
  document.documentElement.dataset.ready = "true";
});
