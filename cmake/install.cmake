# Installs the library, the headers, the executable and the package files for find_package(intaglio). The component
# `python` installs them below the wheel's package folder, and the default component as a C++ project expects them.
include(CMakePackageConfigHelpers)

set_target_properties(intaglio_cli PROPERTIES INSTALL_RPATH "$ORIGIN/../lib")
# This flag writes RPATH instead of RUNPATH. RPATH also applies to the dependencies of libraries, so that a
# folder that `intaglio deploy` wrote runs anywhere with all libraries in its lib/.
if(NOT WIN32)
  target_link_options(intaglio_cli PRIVATE -Wl,--disable-new-dtags)
endif()
write_basic_package_version_file(${PROJECT_BINARY_DIR}/intaglioConfigVersion.cmake COMPATIBILITY SameMajorVersion)

# The licence texts of what is compiled in, by name: from the archive that was built, or from Debian's package.
foreach(name IN LISTS INTAGLIO_LIBRARIES)
  if(source_of_${name})
    file(GLOB texts LIST_DIRECTORIES false ${source_of_${name}}/LICENSE* ${source_of_${name}}/COPYING*)
  else()
    file(GLOB texts /usr/share/doc/${package_of_${name}}/copyright)
  endif()
  file(COPY ${texts} DESTINATION ${PROJECT_BINARY_DIR}/licenses/${name})
endforeach()

# `exported` names the set of targets, and `namelink` is an option of install(TARGETS) or empty. All further arguments
# go to every install().
function(intaglio_install prefix exported namelink)
  set(libraries ${prefix}lib)
  if(WIN32)  # which looks beside the program
    set(libraries ${prefix}bin)
  endif()
  install(TARGETS intaglio EXPORT ${exported} LIBRARY DESTINATION ${libraries} ${ARGN} ${namelink}
    RUNTIME DESTINATION ${libraries} ${ARGN} ARCHIVE DESTINATION ${prefix}lib ${ARGN}
    INCLUDES DESTINATION ${prefix}include)
  install(TARGETS intaglio_ops LIBRARY DESTINATION ${libraries} ${ARGN})
  install(TARGETS intaglio_cli RUNTIME DESTINATION ${prefix}bin ${ARGN})
  install(DIRECTORY ${PROJECT_SOURCE_DIR}/cpp/include/intaglio DESTINATION ${prefix}include ${ARGN})
  set(package_dir ${prefix}lib/cmake/intaglio)
  install(EXPORT ${exported} NAMESPACE intaglio:: FILE intaglioConfig.cmake DESTINATION ${package_dir} ${ARGN})
  install(FILES ${PROJECT_BINARY_DIR}/intaglioConfigVersion.cmake DESTINATION ${package_dir} ${ARGN})
  install(DIRECTORY ${PROJECT_BINARY_DIR}/licenses DESTINATION ${prefix}share/intaglio ${ARGN})
endfunction()

intaglio_install("" intaglio-targets "")
if(INTAGLIO_BUILD_PYTHON)
  # A wheel cannot contain symbolic links, so it contains the library under its SONAME only.
  intaglio_install(intaglio/ intaglio-python NAMELINK_SKIP COMPONENT python EXCLUDE_FROM_ALL)
  # The exporter reads these files from its data folder, and from models/ in a source checkout.
  install(FILES ${PROJECT_SOURCE_DIR}/models/bundle.schema.json
                ${PROJECT_SOURCE_DIR}/models/engine.schema.json
    DESTINATION intaglio_export/data COMPONENT python EXCLUDE_FROM_ALL)
  install(DIRECTORY ${PROJECT_SOURCE_DIR}/models/recipes DESTINATION intaglio_export/data
    COMPONENT python EXCLUDE_FROM_ALL OPTIONAL)
endif()
