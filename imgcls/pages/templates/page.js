"use strict";
for (const form of document.querySelectorAll("form.tools")) {
  const search = form.querySelector("input"), order = form.querySelector("select"), said = form.querySelector("output");
  const list = document.getElementById(search.dataset.list);
  const cards = Array.from(list.children);
  const number = (card) => (card.dataset.probability === "" ? -1 : Number(card.dataset.probability));
  const orders = {
    name: (a, b) => a.dataset.name.localeCompare(b.dataset.name, undefined, { numeric: true }),
    high: (a, b) => number(b) - number(a),
    low: (a, b) => number(a) - number(b),
  };
  const show = () => {
    const words = search.value.trim().toLowerCase();
    let shown = 0;
    for (const card of cards) {
      card.hidden = words !== "" && !card.textContent.toLowerCase().includes(words);
      shown += card.hidden ? 0 : 1;
    }
    said.textContent = words === "" ? "" : shown + " of " + cards.length + " shown";
    list.append(...(order.value === "" ? cards : cards.slice().sort(orders[order.value])));
  };
  form.addEventListener("submit", (event) => event.preventDefault());
  search.addEventListener("input", show);
  order.addEventListener("change", show);
}
