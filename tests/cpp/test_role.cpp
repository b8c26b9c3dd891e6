#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "intaglio/file.h"
#include "intaglio/role.h"

namespace intaglio {
namespace {

// Every name that the schema allows is a role, and the other way round.
TEST(Role, NamesAreThoseOfTheSchema) {
  const auto path = std::filesystem::path(INTAGLIO_TEST_DATA) / "../../models/bundle.schema.json";
  const auto schema = nlohmann::json::parse(read_file(path));
  const auto& names = schema["$defs"]["tensor"]["properties"]["role"]["anyOf"][0]["enum"];
  ASSERT_EQ(names.size(), static_cast<std::size_t>(Role::hidden_states));
  for (const std::string name : names) {
    const auto role = role_from(name);
    ASSERT_TRUE(role) << name;
    EXPECT_EQ(to_string(*role), name);
    EXPECT_EQ(role->block, -1);
  }
}

TEST(Role, ObservedOutputsAreOfABlock) {
  EXPECT_EQ(role_from("hidden_states_12"), Role(Role::hidden_states, 12));
  EXPECT_EQ(role_from("gate_0"), Role(Role::gate, 0));
  EXPECT_EQ(to_string({Role::gate, 7}), "gate_7");
  for (const char* name : {"gate_", "gate_02", "gate_-1", "gate_+1", "gate_1x", "gate", "Latent",
                           "", "hidden_states_99999999999"})
    EXPECT_FALSE(role_from(name)) << name;
}

}  // namespace
}  // namespace intaglio
