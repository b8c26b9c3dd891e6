# nvcc, from PATH, where CUDA's own packages put it, or where cmake/cuda_compiler.sh does.
find_program(CMAKE_CUDA_COMPILER nvcc PATHS /usr/local/cuda/bin ${PROJECT_SOURCE_DIR}/build/deps/cuda/nvidia/cu13/bin REQUIRED)
# What the loop's kernels are compiled for: code for each, and PTX of the last for what is newer.
# sm120's runs on sm121 too.
set(CMAKE_CUDA_ARCHITECTURES 75-real;80-real;86-real;89-real;90-real;100-real;120)
enable_language(CUDA)
# CMake 3.25.1 does not know that nvcc has C++20.
set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
find_package(CUDAToolkit REQUIRED)
