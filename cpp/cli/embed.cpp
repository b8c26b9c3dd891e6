#include <memory>
#include <optional>

#include "cli/commands.h"
#include "cli/console.h"
#include "cli/flags.h"
#include "cli/help_formatter.h"
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
  if (!flags.prompt) throw UsageError("--prompt is missing: give the text to encode");
  if (flags.output.empty()) throw UsageError("--output is missing: give -o FILE.safetensors");
  check_outputs({flags.output});
  const Pipeline pipeline = open_pipeline(flags.run);
  const PromptEmbeddings embeddings = pipeline.embed(*flags.prompt, flags.negative_prompt);
  print_notes(embeddings.notes);
  save_prompt_embeds(flags.output, embeddings);
  print_written(flags.output);
}

}  // namespace

void add_embed(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command =
      app.add_subcommand("embed", "run the text encoders on a prompt and save the embeddings");
  command->footer(
      "`intaglio generate --prompt-embeds FILE` draws from the file, also on a machine that has "
      "no\n"
      "text encoders. CFG needs a negative prompt in the file; --negative-prompt \"\" is the one\n"
      "that `generate` uses by default.\n"
      "Example:\n"
      "  intaglio embed bundle --prompt \"a dark ankle boot\" --negative-prompt \"\" \\\n"
      "      -o boot.safetensors\n"
      "  intaglio generate bundle --prompt-embeds boot.safetensors -o boot.png");
  constexpr auto prompt_group = "Prompt";
  add_flag(*command, "--prompt", flags->prompt, "TEXT", "text that describes the image; required")
      ->group(prompt_group);
  add_flag(*command, "--negative-prompt", flags->negative_prompt, "TEXT",
           "prompt of the unconditional branch; without it the file can be used only in runs "
           "without CFG")
      ->group(prompt_group);
  add_path(*command, "-o,--output", flags->output, "file to write; required")
      ->type_name("FILE.safetensors")
      ->group("Output");
  add_run_flags(*command, flags->run);
  move_help_flag_to_end(*command);
  command->callback([flags] { embed(*flags); });
}

}  // namespace intaglio::cli
