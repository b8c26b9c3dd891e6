#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "intaglio/tokenizer.h"

namespace intaglio {

// Makes a tokenizer from the content of its tables, as load_tokenizer does. Errors name `path`.
std::unique_ptr<Tokenizer> make_tokenizer(const std::filesystem::path& path,
                                          const std::string& json);

}  // namespace intaglio
