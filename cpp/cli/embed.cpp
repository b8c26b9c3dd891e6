#include <iostream>
#include <memory>
#include <optional>

#include "cli/commands.h"
#include "cli/output.h"
#include "intaglio/error.h"
#include "intaglio/pipeline.h"

namespace intaglio::cli {

namespace {

struct Flags {
  RunFlags run;
  std::optional<std::string> prompt, negative_prompt;
  std::filesystem::path output;
};

void embed(const Flags& flags) {
  if (!flags.prompt) throw UsageError("--prompt is missing: give the text to embed");
  if (flags.output.empty()) throw UsageError("--output is missing: give -o F.safetensors");
  check_outputs({flags.output});
  const Pipeline pipeline = open_pipeline(flags.run);
  const PromptEmbeddings embeddings = pipeline.embed(*flags.prompt, flags.negative_prompt);
  print_notes(embeddings.notes);
  save_prompt_embeds(flags.output, embeddings);
  std::cout << flags.output.string() << '\n';
}

}  // namespace

void add_embed(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command =
      app.add_subcommand("embed", "write what the text encoders make of a prompt to a file");
  command->footer(
      "For `intaglio generate --prompt-embeds`, there or on a device without text encoders. With "
      "CFG that\nneeds a negative prompt too: --negative-prompt \"\" is the default of generate.");
  add_run_flags(*command, flags->run);
  add_flag(*command, "--prompt", flags->prompt, "TEXT", "what to draw");
  add_flag(*command, "--negative-prompt", flags->negative_prompt, "TEXT",
           "what the unconditional branch is asked for; without it, the file serves runs without "
           "CFG only");
  command->add_option("-o,--output", flags->output, "where the embeddings go")
      ->type_name("OUT.safetensors");
  command->callback([flags] { embed(*flags); });
}

}  // namespace intaglio::cli
