// Reads a JSON list of LogQL queries and prints, for each, what Grafana's grammar cannot parse in it.
import { readFileSync } from "node:fs";
import { parser } from "@grafana/lezer-logql";

const unparsed = JSON.parse(readFileSync(0, "utf8")).map((query) => {
  const found = [];
  parser.parse(query).iterate({
    enter: (node) => {
      if (node.type.isError) {
        found.push(query.slice(node.from, node.to) || `something is missing at ${node.from}`);
      }
    },
  });
  return found;
});
console.log(JSON.stringify(unparsed));
