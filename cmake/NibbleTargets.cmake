# nibble_library, nibble_program, nibble_test: one way to declare a target.
#
# Every target compiles with the tree's root as include folder ("base/status.h"), C++20, and
# warnings as errors. Folder order and arrows are held by tests/tidy.

function(_nibble_compile target)
  target_include_directories(${target} PUBLIC ${PROJECT_SOURCE_DIR})
  target_compile_features(${target} PUBLIC cxx_std_20)
  target_compile_options(${target} PRIVATE ${NIBBLE_WARNINGS} $<$<CXX_COMPILER_ID:Clang>:-Wthread-safety>)
endfunction()

# nibble_library(name SOURCES a.cc ... DEPENDS target ...)
function(nibble_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  _nibble_compile(${name})
  target_link_libraries(${name} PUBLIC ${ARG_DEPENDS})
endfunction()

# nibble_program(name SOURCES main.cc ... DEPENDS target ...): lands in <build>/bin.
function(nibble_program name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  _nibble_compile(${name})
  target_link_libraries(${name} PRIVATE ${ARG_DEPENDS})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
  set_property(GLOBAL APPEND PROPERTY NIBBLE_PROGRAMS ${name})
endfunction()

# nibble_test(name SOURCES x_test.cc ... DEPENDS target ... LABELS label ... TIMEOUT seconds)
# One CTest entry per GoogleTest case. The default label is "unit".
function(nibble_test name)
  if(NOT NIBBLE_TESTS)
    return()
  endif()
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;DEPENDS;LABELS" ${ARGN})
  if(NOT ARG_LABELS)
    set(ARG_LABELS unit)
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  add_executable(${name} ${ARG_SOURCES})
  _nibble_compile(${name})
  target_compile_definitions(${name} PRIVATE
    NIBBLE_SOURCE_DIR="${PROJECT_SOURCE_DIR}" NIBBLE_BINARY_DIR="${PROJECT_BINARY_DIR}")
  target_link_libraries(${name} PRIVATE ${ARG_DEPENDS} GTest::gtest GTest::gtest_main)
  gtest_discover_tests(${name} DISCOVERY_MODE PRE_TEST DISCOVERY_TIMEOUT 60 NO_PRETTY_VALUES
    PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT})
endfunction()
