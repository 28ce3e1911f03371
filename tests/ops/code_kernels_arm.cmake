# Builds code_kernels_arm with a cross compiler and runs it on emulated Arm processors.
#   cmake -DSOURCE=<tree> -DOUT=<folder> -DCXX=<compiler> -DQEMU=<emulator> -P code_kernels_arm.cmake
# Prints SKIPPED and what is missing where there is no compiler or emulator.
if(NOT CXX)
  message("SKIPPED: no aarch64-linux-gnu-g++; install g++-aarch64-linux-gnu")
  return()
endif()
if(NOT QEMU)
  message("SKIPPED: no qemu-aarch64; install qemu-user")
  return()
endif()

function(run)
  execute_process(COMMAND ${ARGN} WORKING_DIRECTORY ${SOURCE} RESULT_VARIABLE status)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "status ${status}: ${ARGN}")
  endif()
endfunction()

file(MAKE_DIRECTORY ${OUT})
set(flags -std=c++20 -O2 -ffp-contract=off -Wall -Wextra -Werror -I${SOURCE})
run(${CXX} ${flags} -march=armv8.2-a+dotprod -c kernels/cpu/codes/neon_dot.cc
    -o ${OUT}/neon_dot.o)
run(${CXX} ${flags} -march=armv8.2-a+dotprod+i8mm -c kernels/cpu/codes/neon_i8mm.cc
    -o ${OUT}/neon_i8mm.o)
run(${CXX} ${flags} -static tests/ops/code_kernels_arm.cc kernels/cpu/cpu_features.cc
    kernels/cpu/bf16_kernel.cc kernels/cpu/float_kernel.cc kernels/cpu/codes/baseline.cc base/status.cc base/strings.cc
    ${OUT}/neon_dot.o ${OUT}/neon_i8mm.o -o ${OUT}/code_kernels_arm)
# I8MM and DOTPROD, DOTPROD only, neither.
run(${QEMU} -cpu max ${OUT}/code_kernels_arm neoni8mm)
run(${QEMU} -cpu neoverse-n1 ${OUT}/code_kernels_arm neondot)
run(${QEMU} -cpu cortex-a72 ${OUT}/code_kernels_arm baseline)
