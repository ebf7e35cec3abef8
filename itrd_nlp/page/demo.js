"use strict";
// Text of users and models only ever becomes text nodes, never markup.

const at = (id) => document.getElementById(id);
const ROLES = { teacher: "Teacher", student: "Student" };
let models = [];
let limit = 0;
let turns = 0; // questions asked: only the last one is shown

const made = (tag, text = "", className = "") => Object.assign(document.createElement(tag), { textContent: text, className });
const compact = (n) => new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(n);
const digits = (n) => n.toLocaleString("en", { maximumFractionDigits: n < 10 ? 1 : 0 });

async function call(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(path, options || {}).catch(() => null);
  if (!response) throw new Error("The demo does not answer: is `itrd demo` still running?");
  const content = await response.json();
  if (!response.ok) throw new Error(content.error);
  return content;
}

function showError(message) {
  at("error").textContent = message;
  at("error").hidden = !message;
}

function countCharacters() {
  const length = [...at("text").value].length;
  at("count").textContent = length.toLocaleString("en") + " / " + limit.toLocaleString("en");
}

function fillIn(example, button) {
  at("text").value = example.text;
  at("question").value = example.question;
  press(button);
}

function press(chosen) {
  for (const button of at("examples").children) button.setAttribute("aria-pressed", String(button === chosen));
  countCharacters();
}

function addCard(model) {
  const card = at("card").content.firstElementChild.cloneNode(true);
  card.id = model.role;
  card.classList.add(model.role);
  card.setAttribute("aria-label", ROLES[model.role]);
  card.querySelector("h2").append(made("mark", ROLES[model.role], model.role));
  card.querySelector(".name").textContent = card.querySelector(".name").title = model.name;
  card.querySelector(".parameters").textContent = model.parameters === null ? "unknown" : compact(model.parameters);
  card.querySelector(".size").textContent = digits(model.mib) + " MiB";
  at("cards").append(card);
}

function showAnswer(card, answer) {
  const found = answer.text !== "";
  card.querySelector(".answer").textContent = found ? answer.text : "No answer in this text";
  card.querySelector(".answer").classList.toggle("none", !found);
  card.querySelector(".percent").textContent = percent(answer.confidence);
  card.querySelector(".bar div").style.width = 100 * answer.confidence + "%";
  card.querySelector(".ms").textContent = digits(answer.ms) + " ms";
}

function percent(share) {
  if (share > 0.99 && share < 1) return "> 99 %";
  return (100 * share).toFixed(share < 0.1 ? 1 : 0) + " %";
}

function ratio(larger, smaller, more, less) {
  const value = larger / smaller;
  if (value > 0.9 && value < 1.1) return ""; // within what a busy computer adds
  return value > 1 ? `${digits(value)}× ${more}` : `${digits(1 / value)}× ${less}`;
}

function showSummary(answers) {
  const summary = at("summary");
  summary.hidden = answers.length < 2;
  if (summary.hidden) return;
  const [teacher, student] = answers;
  const verdict = teacher.text === student.text ? "Same answer" : "Different answers";
  const facts = [ratio(teacher.ms, student.ms, "faster", "slower"), ratio(models[0].mib, models[1].mib, "smaller", "larger")];
  const told = facts.filter(Boolean).join(", ");
  summary.replaceChildren(made("strong", verdict), made("span", told && `The student is ${told}.`, "muted"));
}

// The passage in pieces, cut where an answer begins or ends; offsets count characters, not UTF-16 units.
function showPassage(text, answers) {
  const characters = [...text];
  const cuts = new Set([0, characters.length]);
  for (const answer of answers) cuts.add(answer.start).add(answer.end);
  const places = [...cuts].sort((a, b) => a - b);
  const pieces = places.slice(1).map((end, i) => {
    const inside = answers.filter((a) => a.text && a.start <= places[i] && a.end >= end);
    const piece = characters.slice(places[i], end).join("");
    if (!inside.length) return document.createTextNode(piece);
    const mark = made("mark", piece, inside.map((a) => a.role).join(" "));
    mark.title = inside.map((a) => ROLES[a.role]).join(" and ");
    return mark;
  });
  const passage = at("passage");
  passage.replaceChildren(...pieces);
  at("legend").replaceChildren(...models.map((m) => made("mark", ROLES[m.role], m.role)));
  at("found").hidden = false;
  const first = passage.querySelector("mark");
  if (first) passage.scrollTop = first.offsetTop - passage.offsetTop - passage.clientHeight / 3;
}

async function ask(event) {
  event?.preventDefault(); // no event: the example that the page opens with
  const turn = ++turns;
  const text = at("text").value;
  showError("");
  at("ask").textContent = "Asking…";
  at("results").classList.add("stale");
  try {
    const { answers } = await call("answer", { question: at("question").value, text });
    if (turn !== turns) return;
    for (const answer of answers) showAnswer(at(answer.role), answer);
    showSummary(answers);
    showPassage(text, answers);
    at("results").classList.remove("stale");
    if (event && at("results").getBoundingClientRect().top > innerHeight / 2) at("results").scrollIntoView();
  } catch (error) {
    if (turn !== turns) return;
    showError(error.message);
  }
  at("ask").textContent = "Ask";
}

async function start() {
  let demo;
  try {
    demo = await call("demo");
  } catch (error) {
    return showError(error.message);
  }
  models = demo.models;
  limit = demo.limit;
  models.forEach(addCard);
  at("cards").classList.toggle("two", models.length === 2);
  if (models.length === 1) {
    at("title").textContent = "Ask the student";
    at("lede").textContent = "It answers with a piece of the text.";
  }
  for (const example of demo.examples) {
    const button = made("button", example.question);
    button.type = "button";
    button.addEventListener("click", (event) => { fillIn(example, button); ask(event); });
    at("examples").append(button);
  }
  fillIn(demo.examples[0], at("examples").firstChild);
  at("form").addEventListener("input", () => press(null));
  at("text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask(event);
  });
  at("form").addEventListener("submit", ask);
  ask();
}

start();
