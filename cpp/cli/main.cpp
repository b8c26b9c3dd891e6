#include "intaglio/command.h"

int main(int argc, char** argv) { return intaglio::run_command({argv + 1, argv + argc}); }
