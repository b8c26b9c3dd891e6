# Library, headers, executable and the package files for find_package(intaglio): in the component `python`
# below the wheel's package folder, by default as a C++ project expects them.
include(CMakePackageConfigHelpers)

set_target_properties(intaglio_cli PROPERTIES INSTALL_RPATH "$ORIGIN/../lib")
# RPATH and not RUNPATH: it holds for what the libraries need too, so that a folder with all of them in lib/
# (intaglio deploy) runs wherever it lies.
target_link_options(intaglio_cli PRIVATE -Wl,--disable-new-dtags)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/intaglioConfigVersion.cmake COMPATIBILITY SameMajorVersion)

# `exported` names the set of targets, `namelink` is an option of install(TARGETS) or empty. What follows goes
# to every install().
function(intaglio_install prefix exported namelink)
  install(TARGETS intaglio EXPORT ${exported} LIBRARY DESTINATION ${prefix}lib ${ARGN} ${namelink}
    INCLUDES DESTINATION ${prefix}include)
  install(TARGETS intaglio_ops LIBRARY DESTINATION ${prefix}lib ${ARGN})
  install(TARGETS intaglio_cli RUNTIME DESTINATION ${prefix}bin ${ARGN})
  install(DIRECTORY ${PROJECT_SOURCE_DIR}/cpp/include/intaglio DESTINATION ${prefix}include ${ARGN})
  set(package_dir ${prefix}lib/cmake/intaglio)
  install(EXPORT ${exported} NAMESPACE intaglio:: FILE intaglioConfig.cmake DESTINATION ${package_dir} ${ARGN})
  install(FILES ${PROJECT_BINARY_DIR}/intaglioConfigVersion.cmake DESTINATION ${package_dir} ${ARGN})
endfunction()

intaglio_install("" intaglio-targets "")
if(INTAGLIO_BUILD_PYTHON)
  # Wheels hold no symbolic links, so the library goes along under its SONAME only.
  intaglio_install(intaglio/ intaglio-python NAMELINK_SKIP COMPONENT python EXCLUDE_FROM_ALL)
  # What the exporter reads beside its code; a source checkout has it in models/.
  install(FILES ${PROJECT_SOURCE_DIR}/models/bundle.schema.json
                ${PROJECT_SOURCE_DIR}/models/engine.schema.json
    DESTINATION intaglio_export/data COMPONENT python EXCLUDE_FROM_ALL)
  install(DIRECTORY ${PROJECT_SOURCE_DIR}/models/recipes DESTINATION intaglio_export/data
    COMPONENT python EXCLUDE_FROM_ALL OPTIONAL)
endif()
