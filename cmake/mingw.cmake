# Windows finds the libraries of a program beside it, also those of the compiler. They have no "lib" before their names.
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
set(CMAKE_SHARED_LIBRARY_PREFIX "")
set(CMAKE_SHARED_MODULE_PREFIX "")
foreach(library libstdc++-6 libgcc_s_seh-1 libwinpthread-1)
  execute_process(COMMAND ${CMAKE_CXX_COMPILER} -print-file-name=${library}.dll
    OUTPUT_VARIABLE file OUTPUT_STRIP_TRAILING_WHITESPACE)
  file(COPY ${file} DESTINATION ${PROJECT_BINARY_DIR}/bin)
  install(FILES ${file} DESTINATION bin)
endforeach()

add_compile_definitions(_stdcall=__stdcall)  # ONNX Runtime's headers use the word of Microsoft's compiler
