/* The baseline variant of all CPU kernels; its compiler flags are in native/sources.json. */
#define DIFFIT_VARIANT baseline
#include "../kernels.h"
