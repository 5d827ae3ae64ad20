// Light, dark, or as the system says: known before anything is drawn, remembered in this browser.
(() => {
  const names = ["auto", "light", "dark"];
  const words = { auto: "as the system", light: "light", dark: "dark" };
  const root = document.documentElement;
  const read = () => { try { return localStorage.getItem("lgm-theme"); } catch { return null; } };
  const apply = (name) => {
    root.dataset.theme = names.includes(name) ? name : "auto";
    for (const button of document.querySelectorAll("[data-theme-toggle]")) {
      button.setAttribute("aria-label", `Colours: ${words[root.dataset.theme]}. Change`);
      button.title = `Colours: ${words[root.dataset.theme]}`;
    }
  };
  apply(read());
  document.addEventListener("click", (event) => {
    if (!(event.target instanceof Element) || !event.target.closest("[data-theme-toggle]")) return;
    const next = names[(names.indexOf(root.dataset.theme) + 1) % names.length];
    try { localStorage.setItem("lgm-theme", next); } catch { /* then for this page alone */ }
    apply(next);
  });
})();
