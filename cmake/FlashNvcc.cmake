# Finds nvcc, on the system or in the `cuda-toolkit` wheels of the Python that builds. Sets FLASH_HAS_NVCC, and what
# enable_language(CUDA) and find_package(CUDAToolkit) need to work with the wheels, which differ from a toolkit in two
# ways: libraries lie in lib/ while nvcc.profile says lib64/, and there is libcudart.so.13 but no libcudart.so.
set(FLASH_HAS_NVCC TRUE)
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(FLASH_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
  if(FLASH_NVCC)
    set(CMAKE_CUDA_COMPILER "${FLASH_NVCC}")
  else()
    set(_script "import nvidia, os
homes = [os.path.join(path, 'cu13') for path in nvidia.__path__]
print(next((home for home in homes if os.path.exists(os.path.join(home, 'bin', 'nvcc'))), ''), end='')")
    set(_home "")
    find_package(Python 3.10 COMPONENTS Interpreter)
    if(Python_FOUND)
      execute_process(COMMAND "${Python_EXECUTABLE}" -c "${_script}" OUTPUT_VARIABLE _home ERROR_QUIET)
    endif()
    if(_home)
      set(CMAKE_CUDA_COMPILER "${_home}/bin/nvcc")
      set(CUDAToolkit_ROOT "${_home}")
      set(CUDA_CUDART "${_home}/lib/libcudart.so.13" CACHE FILEPATH "" FORCE)
      set(CMAKE_CUDA_FLAGS_INIT "-L${_home}/lib")
    else()
      set(FLASH_HAS_NVCC FALSE)
    endif()
  endif()
endif()
