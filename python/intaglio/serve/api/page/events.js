// Reads server-sent events from a response, since EventSource cannot send the Authorization header.

/** Yields {type, data} for every event of `response`, until the stream ends or is interrupted. */
export async function* readEvents(response) {
  let type = "message";
  let data = [];
  for await (const line of lines(response.body)) {
    if (line.startsWith("event:")) type = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
    else if (line === "") {
      if (data.length) yield { type, data: JSON.parse(data.join("\n")) };
      [type, data] = ["message", []];
    }
  }
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const whole = (rest + value).split(/\r?\n/);
    rest = whole.pop();
    yield* whole;
  }
}
