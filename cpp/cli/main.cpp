#include "intaglio/command.h"
#include "platform/process.h"

int main(int argc, char** argv) {
  return intaglio::run_command(intaglio::platform::begin_program(argc, argv));
}
