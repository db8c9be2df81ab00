// Helpers of all panels.

export const $ = (selector, within = document) => within.querySelector(selector);

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

export const source = (base64) => `data:image/png;base64,${base64}`;

export const seconds = (value) => (value < 9.95 ? value.toFixed(2) : value.toFixed(0)) + " s";

export function options(select, values, wanted) {
  select.replaceChildren(...values.map(([value, text]) => element("option", { value, textContent: text })));
  if (wanted !== undefined) select.value = wanted;
}

/** Runs one task at a time in a panel, with its stop button, status and error. A new task ends the last one. */
export function worker(panel, begin) {
  const stop = $(".stop", panel);
  const [status, wrong] = [$(".status", panel), $(".wrong", panel)];
  let abort = null;
  stop.addEventListener("click", () => abort?.abort());
  return async (...given) => {
    abort?.abort();
    const mine = (abort = new AbortController());
    wrong.hidden = true;
    status.textContent = "";
    stop.disabled = false;
    try {
      await begin((text) => { if (abort === mine) status.textContent = text; }, mine.signal, ...given);
    } catch (error) {
      if (error.name === "AbortError") {
        if (abort === mine) status.textContent = "stopped";
      } else if (abort === mine) {
        wrong.textContent = error.message;
        wrong.hidden = false;
        status.textContent = "";
      }
    } finally {
      if (abort === mine) {
        if (document.activeElement === stop) $(".main", panel).focus(); // a disabled button loses the focus
        stop.disabled = true;
      }
    }
  };
}
