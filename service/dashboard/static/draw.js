// A canvas to draw a digit on, white on black as the training images are; every stroke's end tells the server.
(() => {
  const begin = (canvas, event) => {
    const pen = canvas.getContext("2d");
    const at = (point) => {
      const box = canvas.getBoundingClientRect();
      return [(point.clientX - box.left) * canvas.width / box.width, (point.clientY - box.top) * canvas.height / box.height];
    };
    pen.strokeStyle = "#fff";
    pen.lineWidth = canvas.width / 12;
    pen.lineCap = pen.lineJoin = "round";
    pen.beginPath();
    pen.moveTo(...at(event));
    pen.lineTo(...at(event));
    pen.stroke();
    canvas.setPointerCapture(event.pointerId);
    const move = (point) => { pen.lineTo(...at(point)); pen.stroke(); };
    const end = () => {
      canvas.removeEventListener("pointermove", move);
      emitEvent("drawn", canvas.toDataURL("image/png"));
    };
    canvas.addEventListener("pointermove", move);
    canvas.addEventListener("pointerup", end, { once: true });
  };
  const wipe = (canvas) => {
    const pen = canvas.getContext("2d");
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, canvas.width, canvas.height);
  };
  document.addEventListener("pointerdown", (event) => {
    const canvas = event.target;
    if (!(canvas instanceof HTMLCanvasElement) || !canvas.matches("[data-draw]")) return;
    if (!canvas.dataset.begun) { wipe(canvas); canvas.dataset.begun = "yes"; }
    event.preventDefault();
    begin(canvas, event);
  });
  document.addEventListener("click", (event) => {
    if (!(event.target instanceof Element) || !event.target.closest("[data-wipe]")) return;
    for (const canvas of document.querySelectorAll("canvas[data-draw]")) wipe(canvas);
  });
  document.addEventListener("change", (event) => {
    const input = event.target;
    if (!(input instanceof HTMLInputElement) || !input.matches("input[type=file][data-image]")) return;
    const [file] = input.files;
    if (!file) return;
    if (file.size > 4 * 1024 * 1024 * 0.7) return emitEvent("uploaded", "too large");
    const reader = new FileReader();
    reader.onload = () => { emitEvent("uploaded", reader.result); input.value = ""; };
    reader.readAsDataURL(file);
  });
})();
