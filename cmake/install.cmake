# Installs the library, the headers, the executable and the package files for find_package(intaglio).
include(CMakePackageConfigHelpers)

if(INTAGLIO_BUILD_PYTHON)
  set(INTAGLIO_INSTALL_PREFIX intaglio/)  # the folder of the package in the wheel
  # A wheel cannot contain symbolic links, so versioned names would be three copies of the library.
  set_property(TARGET intaglio PROPERTY VERSION)
  set_property(TARGET intaglio PROPERTY SOVERSION)
  # The exporter reads these files from its data folder, and from models/ in a source checkout.
  install(FILES ${PROJECT_SOURCE_DIR}/models/bundle.schema.json
                ${PROJECT_SOURCE_DIR}/models/engine.schema.json DESTINATION intaglio_export/data)
  install(DIRECTORY ${PROJECT_SOURCE_DIR}/models/recipes DESTINATION intaglio_export/data OPTIONAL)
endif()
set(INTAGLIO_LIBDIR ${INTAGLIO_INSTALL_PREFIX}lib)
set(INTAGLIO_BINDIR ${INTAGLIO_INSTALL_PREFIX}bin)
set(INTAGLIO_INCLUDEDIR ${INTAGLIO_INSTALL_PREFIX}include)

set_target_properties(intaglio_cli PROPERTIES INSTALL_RPATH "$ORIGIN/../lib")
# This flag writes RPATH instead of RUNPATH. RPATH also applies to the dependencies of libraries, so that a
# folder that `intaglio deploy` wrote runs anywhere with all libraries in its lib/.
target_link_options(intaglio_cli PRIVATE -Wl,--disable-new-dtags)
install(TARGETS intaglio EXPORT intaglio-targets LIBRARY DESTINATION ${INTAGLIO_LIBDIR}
  INCLUDES DESTINATION ${INTAGLIO_INCLUDEDIR})
install(TARGETS intaglio_ops LIBRARY DESTINATION ${INTAGLIO_LIBDIR})
install(TARGETS intaglio_cli RUNTIME DESTINATION ${INTAGLIO_BINDIR})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/cpp/include/intaglio DESTINATION ${INTAGLIO_INCLUDEDIR})

set(package_dir ${INTAGLIO_LIBDIR}/cmake/intaglio)
install(EXPORT intaglio-targets NAMESPACE intaglio:: FILE intaglioConfig.cmake DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/intaglioConfigVersion.cmake COMPATIBILITY SameMajorVersion)
install(FILES ${PROJECT_BINARY_DIR}/intaglioConfigVersion.cmake DESTINATION ${package_dir})
