# Builds the CUDA plug-in for one architecture beside this build and lets the tests of its edge open
# it: what it says to another version, and without a device.
#   cmake -DSOURCE=<tree> -DOUT=<folder> -DNVCC=<compiler> -DTEST=<ops_test> -P cuda_plugin.cmake
# Prints SKIPPED and what is missing where there is no CUDA compiler.
if(NOT NVCC)
  message("SKIPPED: no nvcc; install the CUDA 13 toolkit to build the plug-in")
  return()
endif()

function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE status OUTPUT_VARIABLE text ERROR_VARIABLE text)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "status ${status}: ${ARGN}\n${text}")
  endif()
  if(text MATCHES "SKIPPED")
    message(FATAL_ERROR "a test of the plug-in was skipped although it was built:\n${text}")
  endif()
endfunction()

run(${CMAKE_COMMAND} -S ${SOURCE} -B ${OUT} -G Ninja -DCMAKE_BUILD_TYPE=Release
    -DCMAKE_CXX_FLAGS_RELEASE=-O2 -DCMAKE_CUDA_COMPILER=${NVCC} -DCMAKE_CUDA_ARCHITECTURES=90a-real
    -DNIBBLE_CUDA=ON -DNIBBLE_SERVICE=OFF -DNIBBLE_TESTS=OFF)
run(${CMAKE_COMMAND} --build ${OUT} --target nibble_cuda)
run(${CMAKE_COMMAND} -E env NIBBLE_CUDA_PLUGIN=${OUT}/bin/libnibble_cuda.so
    ${TEST} --gtest_filter=CudaPlugin.ABuilt*)
