"use strict";

const one = (id) => document.getElementById(id);
const number = new Intl.NumberFormat(undefined, { maximumFractionDigits: 6 });

let token = location.hash.slice(1) || sessionStorage.getItem("token") || "";
let state = null;
let stream = null;
let chosen = null;

if (location.hash) {
  sessionStorage.setItem("token", token);
  history.replaceState(null, "", location.pathname);
}

function make(tag, className, text, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined && text !== null) made.textContent = text;
  made.append(...children);
  return made;
}

function listen() {
  stream?.close();
  stream = new EventSource(`/events?search=${encodeURIComponent(one("search").value)}`);
  stream.onopen = () => live("on", "live");
  stream.onerror = ({ target }) => {
    live("off", "not reachable");
    if (target.readyState === EventSource.CLOSED) setTimeout(() => target === stream && listen(), 3000);
  };
  stream.onmessage = (event) => { state = JSON.parse(event.data); show(); };
}

function live(className, text) {
  one("live").className = `live ${className}`;
  one("live").textContent = text;
}

function show() {
  showFigures();
  showCustomers();
  showRecent();
  showPlans();
  const locked = !token;
  one("locked").hidden = !locked;
  for (const button of document.querySelectorAll(".changes button")) button.disabled = locked;
}

function showFigures() {
  const figures = state.figures;
  const moved = state.moved ? ` (${number.format(state.moved / 86400)} days ahead)` : "";
  const within = (seconds) => (seconds ? `≤ ${number.format(seconds * 1000)} ms` : "–");
  const told = {
    "Clock (UTC)": state.now.slice(0, 16).replace("T", " ") + moved,
    "Customers": number.format(state.total),
    "Answered": number.format(figures.answered),
    "Failed": number.format(figures.failed),
    "Half answered in": within(figures.p50),
    "99 % answered in": within(figures.p99),
  };
  if (figures.misses || figures.redis_errors) told["Redis news / errors"] = `${figures.misses} / ${figures.redis_errors}`;
  one("figures").replaceChildren(
    ...Object.entries(told).map(([name, value]) => make("div", "", null, make("dt", "", name), make("dd", "", value))),
  );
}

// A card is made anew only when what it shows has changed, so that focus and open details stay.
const cards = new Map();

function showCustomers() {
  const more = state.found - state.customers.length;
  one("more").hidden = more <= 0 && state.found > 0;
  one("more").textContent = state.found ? `and ${number.format(more)} more; search for them` : "Nobody of that name.";
  for (const id of [...cards.keys()]) if (!state.customers.some((customer) => customer.id === id)) forget(id);
  for (const customer of state.customers) {
    const told = JSON.stringify(customer);
    const known = cards.get(customer.id);
    if (known?.told === told) continue;
    const open = new Set([...(known?.card.querySelectorAll("details[open]") ?? [])].map((one) => one.dataset.part));
    const hadFocus = known?.card.contains(document.activeElement);
    const card = cardOf(customer, open);
    if (known) known.card.replaceWith(card);
    if (hadFocus) card.querySelector("button").focus();
    cards.set(customer.id, { told, card });
  }
  state.customers.forEach(({ id }, index) => {
    const { card } = cards.get(id);
    if (one("customers").children[index] !== card) one("customers").insertBefore(card, one("customers").children[index] ?? null);
  });
}

function forget(id) {
  cards.get(id).card.remove();
  cards.delete(id);
}

function cardOf(customer, open) {
  const change = make("button", "", "Change…");
  change.setAttribute("aria-label", `Change ${customer.id}`);
  change.addEventListener("click", () => openDialog(customer.id));
  const title = make("h3", "", customer.name ? `${customer.name} · ${customer.id}` : customer.id);
  const head = make("div", "row changes", null, title, change);
  return make("article", "card", null, head, ...customer.parts.map((part) => partOf(customer, part, open)));
}

function partOf(customer, part, open) {
  const whose = `${part.resource}: `;
  const plan = customer.archived ? "archived" : part.plan ?? "no subscription";
  const shown = part.resource ? folded(part, "resource", whose + plan, open) : make("div", "", null, make("div", "plan", plan));
  shown.classList.add("part");
  const [counted, other] = [true, false].map((is) => part.entitlements.filter((entry) => "used" in entry === is));
  shown.append(...counted.map((entry) => entryOf(entry, customer, part)));
  if (other.length) {
    const details = folded(part, "other", `${other.length} features that are not counted`, open);
    details.append(...other.map((entry) => entryOf(entry, customer, part)));
    shown.append(details);
  }
  return shown;
}

function folded(part, what, summary, open) {
  const details = make("details", "", null, make("summary", "", summary));
  details.dataset.part = `${what}/${part.resource}`;
  details.open = open.has(details.dataset.part);
  return details;
}

function entryOf(entry, customer, part) {
  const row = make("div", entry.access ? "entry" : "entry no", null, make("span", "name", entry.name));
  const extras = [];
  if ("used" in entry) {
    const limit = entry.limit === null ? (entry.paid ? "paid by credits" : "unlimited") : number.format(entry.limit);
    row.append(make("span", "amount", `${number.format(entry.used)}${entry.limit === null ? "," : " of"} ${limit}`));
    if (entry.limit !== null) row.append(barOf(entry));
    if (entry.soft) extras.push("soft limit");
    if (entry.ends) extras.push(`until ${entry.ends.slice(0, 10)}`);
    if (entry.kind === "credit") extras.push("credits");
  } else {
    row.append(make("span", "amount", entry.access ? entry.text : "no"));
  }
  if (entry.reason) extras.push(entry.reason);
  const promotion = part.resource ? null : customer.promotions.find(({ feature }) => feature === entry.id);
  if (promotion) extras.push(`promotion ${promotion.ends ? `until ${promotion.ends.slice(0, 10)}` : "without end"}`);
  if (extras.length) row.append(make("span", "extra", extras.join(" · ")));
  return row;
}

function barOf(entry) {
  const bar = make("progress", entry.used >= entry.limit ? "full" : entry.used >= 0.8 * entry.limit ? "near" : "");
  bar.max = entry.limit || 1;
  bar.value = entry.limit ? Math.min(entry.used, entry.limit) : 1;
  bar.setAttribute("aria-label", `${entry.name}: used`);
  return bar;
}

function showRecent() {
  const kind = one("kinds").value;
  const shown = state.recent.filter(({ outcome }) => !kind || outcome === kind).slice(0, 60);
  one("quiet").hidden = shown.length > 0;
  one("recent").replaceChildren(...shown.map(recentOf));
}

function recentOf(request) {
  const whose = [request.customer, request.resource].filter(Boolean).join(" / ");
  const when = make("time", "", request.at.slice(11, 19));
  when.dateTime = request.at;
  const what = make("span", "", null, make("span", "what", request.outcome), ` ${request.feature || "everything"}`);
  const how = make("span", "how", [whose, request.method, request.detail].filter(Boolean).join(" · "));
  return make("li", request.outcome, null, what, when, how);
}

let plansTold = "";

function showPlans() {
  if (plansTold === (plansTold = JSON.stringify(state.plans))) return;
  one("plans").replaceChildren(...state.plans.map((plan) => {
    const head = make("div", "row", null, make("h3", "", plan.name), make("span", "", plan.prices.join(", ") || "free"));
    const rows = plan.gives.map(({ name, text }) =>
      make("div", "entry", null, make("span", "name", name), make("span", "amount", text)));
    return make("article", "card", null, head, make("details", "", null, make("summary", "", `${rows.length} entitlements`), ...rows));
  }));
}

function options(select, entries, value) {
  select.replaceChildren(...entries.map(([id, text]) => {
    const option = make("option", "", text);
    option.value = id;
    return option;
  }));
  if (value !== undefined) select.value = value;
}

function openDialog(id) {
  chosen = state.customers.find((customer) => customer.id === id);
  const [own] = chosen.parts;
  const features = Object.entries(state.features).map(([key, { name, kind }]) => [key, name, kind]);
  one("dialog-title").textContent = chosen.id;
  options(one("change-plan").plan, [["", "no subscription"], ...state.plans.map(({ id: plan, name }) => [plan, name])], own.plan ?? "");
  options(one("change-usage").feature, features.filter(([, , kind]) => kind === "metered"));
  options(one("change-promotion").feature, features);
  showUsed();
  say("");
  one("dialog").showModal();
}

function showUsed() {
  const form = one("change-usage");
  const entry = chosen.parts[0].entitlements.find(({ id }) => id === form.feature.value);
  form.value.value = entry?.used ?? 0;
}

function grantOf(feature, gives) {
  const { kind } = state.features[feature];
  const text = gives.trim();
  if (kind === "boolean") return true;
  if (kind === "enum") return { values: text.split(",").map((value) => value.trim()).filter(Boolean) };
  if (!text) return { unlimited: true };
  return kind === "numeric" ? { value: Number(text) } : { limit: Number(text) };
}

function say(text, done) {
  one("said").textContent = text;
  one("said").className = done ? "done" : "";
}

async function change(name, given) {
  const headers = { "Content-Type": "application/json", "X-Sidecar-Token": token };
  try {
    const answer = await fetch(`/changes/${name}`, { method: "POST", headers, body: JSON.stringify(given) });
    say(answer.ok ? "Done." : (await answer.json()).detail, answer.ok);
    if (answer.status === 401) lock();
  } catch {
    say("The sidecar is not reachable.");
  }
}

function lock() {
  token = "";
  sessionStorage.removeItem("token");
  show();
}

function on(id, act) {
  one(id).addEventListener("submit", (event) => {
    event.preventDefault();
    act(event.target, event.submitter);
  });
}

on("change-plan", ({ plan }) => change("plan", { customer: chosen.id, plan: plan.value || null }));
on("change-usage", ({ feature, value }) =>
  change("usage", { customer: chosen.id, feature: feature.value, value: Number(value.value) }));
on("change-promotion", ({ feature, gives, until }, button) => change("promotion", {
  customer: chosen.id,
  feature: feature.value,
  grant: button === one("take-back") ? null : grantOf(feature.value, gives.value),
  until: until.value ? new Date(until.value).toISOString() : null,
}));
on("clock", (_, button) => change("clock", { seconds: Number(button.value) }));
one("change-usage").feature.addEventListener("change", showUsed);
one("kinds").addEventListener("change", showRecent);
one("search").addEventListener("input", listen);
one("token").addEventListener("change", (event) => {
  token = event.target.value.trim();
  sessionStorage.setItem("token", token);
  event.target.value = "";
  show();
});
listen();
