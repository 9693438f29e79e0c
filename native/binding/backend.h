/*
 * From a device's name to its backend: the CPU's is part of the addon, every other one is a shared library beside it
 * that exports one symbol (abi/diffit.h) and is loaded on first use and kept.
 */
#ifndef DIFFIT_BINDING_BACKEND_H
#define DIFFIT_BINDING_BACKEND_H

#include <string>
#include <vector>

#include "../abi/diffit.h"

namespace diffit {

/* "cuda:1" taken apart; `name` is its one spelling ("cuda" becomes "cuda:0"). */
struct DeviceSpec {
  std::string name;
  std::string variant; /* of the CPU, or empty */
  int32_t index = 0;
};

/* Both give false / nullptr and one plain sentence in `why`. */
bool parseSpec(const std::string &text, DeviceSpec *spec, std::string *why);
const diffit_backend *findBackend(const DeviceSpec &spec, const std::string &library, std::string *why);
/* How many devices of the kind there are; 0 also where there is no library. */
int32_t countDevices(const DeviceSpec &spec, const std::string &library);

std::vector<const char *> cpuVariants();

}  // namespace diffit

#endif
