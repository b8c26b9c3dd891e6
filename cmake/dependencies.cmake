# These come from packages of the distribution (cmake/system-packages.txt), which `make setup` installs.
find_package(nlohmann_json 3.11 REQUIRED)
find_package(CLI11 2.1 REQUIRED)
find_package(PNG REQUIRED)
find_package(OpenSSL 3 REQUIRED COMPONENTS Crypto)
find_package(Threads REQUIRED)

find_path(UTF8PROC_INCLUDE_DIR utf8proc.h REQUIRED)
find_library(UTF8PROC_LIBRARY utf8proc REQUIRED)

# Only ONNX Runtime's headers are needed, because its library is loaded at run time. Distributions older
# than the next Debian have none of version 1.23 or later, so cmake/onnxruntime_headers.sh unpacks them into build/deps.
find_path(ONNXRUNTIME_INCLUDE_DIR onnxruntime_cxx_api.h
  HINTS ${PROJECT_SOURCE_DIR}/build/deps/onnxruntime/usr/include
  PATH_SUFFIXES onnxruntime REQUIRED)
