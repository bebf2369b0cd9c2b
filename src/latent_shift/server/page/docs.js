// The OpenAPI document as a page.

import { element } from "./card.js";

const document_ = await (await fetch("/openapi.json")).json();
const resolve = (schema) => (schema?.$ref ? document_.components.schemas[schema.$ref.split("/").pop()] : schema);

function kind(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(kind).join(" or ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(", ");
  if ("const" in schema) return JSON.stringify(schema.const);
  return schema.type === "array" ? `list of ${kind(schema.items)}` : schema.type;
}

function table(head, rows) {
  const row = (cells, tag) => element("tr", {}, ...cells.map((cell) => element(tag, { textContent: cell })));
  return element("div", { className: "scroll", tabIndex: 0 }, element("table", {}, element("thead", {}, row(head, "th")), element("tbody", {}, ...rows.map((cells) => row(cells, "td")))));
}

const fields = (schema) => table(["Field", "Type", "Meaning"], Object.entries(resolve(schema).properties ?? {}).map(
  ([name, field]) => [`${name}${resolve(schema).required?.includes(name) ? " *" : ""}`, kind(field), field.description ?? ""]));

const main = document.getElementById("calls");
for (const [path, operations] of Object.entries(document_.paths)) {
  for (const [method, operation] of Object.entries(operations)) {
    const card = element("article", { className: "card api" },
      element("h2", { textContent: `${method.toUpperCase()} ${path}` }), element("p", { textContent: operation.description ?? operation.summary }));
    const asked = (operation.parameters ?? []).map((one) => [one.name, kind(one.schema), one.description ?? one.schema.description ?? ""]);
    if (asked.length) card.append(table(["Parameter", "Type", "Meaning"], asked));
    const body = operation.requestBody?.content["application/json"]?.schema;
    if (body) card.append(element("p", { className: "quiet", textContent: "Body, as JSON or as a multipart form; * must be given:" }), fields(body));
    card.append(table(["Status", "Answer"], Object.entries(operation.responses).map(
      ([status, answer]) => [status, Object.entries(answer.content ?? {}).map(([type, { schema }]) => kind(schema) || type).join(", ") || answer.description])));
    main.append(card);
  }
}
main.append(element("h2", { textContent: "Objects" }));
for (const [name, schema] of Object.entries(document_.components.schemas)) {
  main.append(element("article", { className: "card api" }, element("h2", { textContent: name }), element("p", { textContent: schema.description ?? "" }), fields(schema)));
}
