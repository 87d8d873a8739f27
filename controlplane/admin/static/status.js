// Keeps the status page up to date: fetches two documents a second and fills what is bound to them.
//
// binding.py writes the markup and describes `data-field`, `data-form`, `data-list`. Values become
// text or attributes of known elements, never markup.
"use strict";

(() => {
  const REFRESH_MS = 1000;
  const TIMEOUT_MS = 5000;
  const NOTHING = "-";
  const SIZES = ["B", "kB", "MB", "GB", "TB"];
  const RATES = ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"];

  const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
  const count = (value) => whole.format(value);

  function scaled(value, units) {
    let step = 0;
    while (Math.abs(value) >= 999.5 && step < units.length - 1) {
      value /= 1000;
      step += 1;
    }
    return `${value.toFixed(step > 0 && Math.abs(value) < 99.95 ? 1 : 0)} ${units[step]}`;
  }

  function seconds(value) {
    const size = Math.abs(value);
    if (size < 0.00005) return "0 ms";
    if (size < 0.00095) return `${(value * 1000).toFixed(1)} ms`;
    if (size < 0.0995) return `${(value * 1000).toFixed(0)} ms`;
    return `${value.toFixed(size < 9.995 ? 2 : 1)} s`;
  }

  function percent(ratio) {
    const value = ratio * 100;
    return `${value.toFixed(value !== 0 && Math.abs(value) < 9.95 ? 1 : 0)} %`;
  }

  function pairs(value) {
    const said = Object.entries(value).map(([name, part]) => `${name} = ${JSON.stringify(part)}`);
    return said.join(", ") || "none";
  }

  // The same names as FORMS in binding.py.
  const FORMS = {
    text: String,
    words: (value) => value.replaceAll("_", " "),
    count,
    size: (value) => scaled(value, SIZES),
    rate: (value) => scaled(value, RATES),
    seconds,
    percent,
    clock: (value) => new Date(value * 1000).toISOString().slice(11, 19),
    pairs,
    list: (value) => value.join(", ") || "none",
    speed: (value) => (value > 0 ? `${count(1 / value)} tok/s` : NOTHING),
    step: (value) => (value > 0 ? seconds(value) : NOTHING),
  };

  const field = (item, path) => path.split(".").reduce((at, name) => at?.[name], item);

  function setText(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  function show(element, item) {
    const value = field(item, element.dataset.field);
    const isKnown = value !== null && value !== undefined;
    switch (element.dataset.form) {
      case "badge":
        setText(element, isKnown ? String(value) : NOTHING);
        element.dataset.state = element.textContent;
        break;
      case "bar":
        element.setAttribute("width", (100 * Math.min(1, Math.max(0, value ?? 0))).toFixed(2));
        break;
      case "shown":
        element.hidden = !value;
        break;
      case "decision":
        setText(element, String(value).slice(0, 12));
        element.title = String(value);
        element.setAttribute("href", `/decisions/${encodeURIComponent(item.decision_id)}`);
        break;
      default:
        setText(element, isKnown ? FORMS[element.dataset.form](value) : NOTHING);
    }
  }

  function fill(element, item) {
    if (element.dataset.list !== undefined) {
      repeat(element, field(item, element.dataset.list) ?? []);
      return;
    }
    if (element.dataset.field !== undefined) show(element, item);
    for (const child of element.children) fill(child, item);
  }

  // Elements stay where they are while their item is in the list, so focus and selection stay too.
  function repeat(list, items) {
    const template = document.getElementById(list.dataset.template);
    const known = new Map(Array.from(list.children, (child) => [child.dataset.id, child]));
    let place = list.firstElementChild;
    for (const item of items) {
      const id = String(item[list.dataset.key]);
      let child = known.get(id);
      if (child === undefined) {
        child = template.content.firstElementChild.cloneNode(true);
        child.dataset.id = id;
      }
      known.delete(id);
      fill(child, item);
      if (child === place) place = place.nextElementSibling;
      else list.insertBefore(child, place);
    }
    for (const child of known.values()) child.remove();
  }

  const main = document.getElementById("main");
  const trouble = document.getElementById("trouble");
  const pause = document.getElementById("pause");
  let isPaused = false;
  let heardAt = new Date();

  async function read(path) {
    const answer = await fetch(path, {
      headers: { accept: "application/json" },
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    if (!answer.ok) throw new Error(`${path} answered ${answer.status}`);
    return answer.json();
  }

  async function refresh() {
    try {
      const [state, log] = await Promise.all([
        read("/admin/v1/state"),
        read(`/admin/v1/decisions?limit=${main.dataset.shown}`),
      ]);
      fill(document.body, { ...state, log });
      heardAt = new Date();
      setText(trouble, "");
    } catch (error) {
      const since = heardAt.toISOString().slice(11, 19);
      setText(trouble, `The router does not answer; this is how it was at ${since} UTC.`);
    }
  }

  async function live() {
    if (!isPaused && !document.hidden) await refresh();
    setTimeout(live, REFRESH_MS);
  }

  pause.hidden = false;
  pause.addEventListener("click", () => {
    isPaused = !isPaused;
    pause.setAttribute("aria-pressed", String(isPaused));
    setText(pause, isPaused ? "Paused" : "Pause");
  });
  live();
})();
