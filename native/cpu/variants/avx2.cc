/* The avx2 variant of all CPU kernels; its compiler flags are in native/sources.json. */
#define DIFFIT_VARIANT avx2
#include "../kernels.h"
