// The request as a curl command and as a Python program.
import { apiKey } from "./api.js";

const KEY_VARIABLE = "INTAGLIO_API_KEY";
// Arguments of the openai client; all other fields go into extra_body.
const OPENAI = ["model", "prompt", "size"];

const base = () => new URL("v1", document.baseURI).href;
const field = ([name, value]) => `${JSON.stringify(name)}: ${JSON.stringify(value)}`;

/** Returns a command that prints the picture's URL. */
export function curl(request) {
  const body = Object.entries({ ...request, response_format: "url" }).map(field).join(",\n  ");
  return [
    `curl ${base()}/images/generations`,
    ...(apiKey.get() ? [`-H "Authorization: Bearer $${KEY_VARIABLE}"`] : []),
    "-H 'Content-Type: application/json'",
    `-d '{\n  ${body.replaceAll("'", "'\\''")}\n}'`,
  ].join(" \\\n  ");
}

/** Returns a program that writes the picture to picture.png. Its JSON values are valid Python, since a
 * request has only strings, numbers and lists of numbers. */
export function python(request) {
  // The client requires a prompt, even for a model that draws by class.
  const all = Object.entries({ ...request, prompt: request.prompt ?? "" });
  const own = all.filter(([name]) => OPENAI.includes(name));
  const extra = all.filter(([name]) => !OPENAI.includes(name));
  const key = apiKey.get() ? `os.environ["${KEY_VARIABLE}"]` : '"none"';
  return `${apiKey.get() ? "import os\n" : ""}from base64 import b64decode
from pathlib import Path

from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(base())}, api_key=${key})
answer = client.images.generate(
${own.map(([name, value]) => `    ${name}=${JSON.stringify(value)},\n`).join("")}    response_format="b64_json",
    extra_body={
${extra.map((one) => `        ${field(one)},\n`).join("")}    },
)
Path("picture.png").write_bytes(b64decode(answer.data[0].b64_json))
`;
}

/** Makes `button` copy the text of `code`. */
export function copies(button, code) {
  const name = button.textContent;
  button.addEventListener("click", async () => {
    await copy(code);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = name), 2000);
  });
}

async function copy(code) {
  if (navigator.clipboard) return navigator.clipboard.writeText(code.textContent);
  // Browsers have no navigator.clipboard on pages from another machine over plain HTTP.
  getSelection().selectAllChildren(code);
  document.execCommand("copy");
}
