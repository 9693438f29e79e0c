/* The avx512 variant of all CPU kernels; its compiler flags are in native/sources.json. */
#define DIFFIT_VARIANT avx512
#include "../kernels.h"
