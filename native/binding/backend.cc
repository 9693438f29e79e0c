#include "backend.h"

#include <dlfcn.h>
#include <stdlib.h>

#include "js.h"

extern "C" const diffit_backend *diffit_cpu_backend(void);
extern "C" int diffit_cpu_variants(const char **names, int max);

namespace diffit {

bool parseSpec(const std::string &text, DeviceSpec *spec, std::string *why) {
  const size_t colon = text.find(':');
  const std::string kind = text.substr(0, colon);
  const std::string rest = colon == std::string::npos ? "" : text.substr(colon + 1);
  const bool bare = colon == std::string::npos;
  if (kind == "cpu" && (bare || !rest.empty())) {
    *spec = {text, rest, 0};
    return true;
  }
  if (kind == "cuda" || kind == "cuda-emulated") {
    const bool number = !rest.empty() && rest.size() < 5 && rest.find_first_not_of("0123456789") == std::string::npos;
    if (bare || number) {
      const int index = atoi(rest.c_str());
      *spec = {format("%s:%d", kind.c_str(), index), "", index};
      return true;
    }
  }
  *why = format("There is no device called \"%.100s\"; expected cpu, cpu:VARIANT, cuda, cuda:INDEX or cuda-emulated.",
                text.c_str());
  return false;
}

const diffit_backend *findBackend(const DeviceSpec &spec, const std::string &library, std::string *why) {
  if (spec.name.compare(0, 3, "cpu") == 0) return diffit_cpu_backend();
  if (library.empty()) {
    *why = format("There is no library for the device %s.", spec.name.c_str());
    return nullptr;
  }
  void *handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    const char *reason = dlerror();
    *why = format("The library of the device %s could not be loaded: %s.", spec.name.c_str(),
                  reason ? reason : library.c_str());
    return nullptr;
  }
  const auto entry = reinterpret_cast<diffit_backend_entry>(dlsym(handle, DIFFIT_BACKEND_SYMBOL));
  const diffit_backend *backend = entry ? entry() : nullptr;
  if (!backend) {
    *why = format("%s is no backend of diffit: it has no %s.", library.c_str(), DIFFIT_BACKEND_SYMBOL);
    return nullptr;
  }
  if (backend->abi_version != DIFFIT_ABI_VERSION) {
    *why = format("%s has ABI version %u, expected %d: it was built from other sources.", library.c_str(),
                  (unsigned)backend->abi_version, DIFFIT_ABI_VERSION);
    return nullptr;
  }
  return backend;
}

int32_t countDevices(const DeviceSpec &spec, const std::string &library) {
  std::string why;
  const diffit_backend *backend = findBackend(spec, library, &why);
  return backend && backend->count ? backend->count() : 0;
}

std::vector<const char *> cpuVariants() {
  std::vector<const char *> names(8);
  const int count = diffit_cpu_variants(names.data(), (int)names.size());
  names.resize(count < (int)names.size() ? (size_t)count : names.size());
  return names;
}

}  // namespace diffit
