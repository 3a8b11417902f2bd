// Elements and words: the two things every screen is made of.

let words = {};

export async function loadWords() {
  words = await (await fetch("/medseg-assets/strings.en.json")).json();
}

/** The sentence `part.name`, with {0}, {1} replaced. */
export function t(key, ...values) {
  const text = key.split(".").reduce((found, part) => found?.[part], words) ?? key;
  return values.reduce((done, value, i) => done.replaceAll(`{${i}}`, value), text);
}

/** An element with attributes (`on...` are listeners) and children. */
export function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

/** A heading that takes the focus when its screen opens, so that a screen reader begins there. */
export const title = (text) => el("h2", { tabindex: "-1" }, text);

export function button(text, onclick, attributes = {}) {
  return el("button", { type: "button", onclick, ...attributes }, text);
}

export function labelled(text, control) {
  return el("label", { class: "field" }, el("span", {}, text), control);
}

export function options(list, chosen, onchange, attributes = {}) {
  const made = el("select", { ...attributes, onchange: () => onchange(made.value) });
  for (const [value, text] of list) made.append(el("option", { value, selected: String(value) === String(chosen) }, text));
  return made;
}

/** Seconds as a person says them. */
export function duration(seconds) {
  return seconds < 90 ? t("units.seconds", Math.round(seconds)) : t("units.minutes", Math.round(seconds / 60));
}

export function say(text) {
  document.getElementById("ms-say").textContent = text;
}
