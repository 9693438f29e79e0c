# Builds the addon with the CPU backend alone: the source fallback of `npm install`. Sources and flags are those of
# native/sources.json; gyp knows no flags per file, so each instruction-set variant is a static library of its own.
{
  'target_defaults': {
    'default_configuration': 'Release',
    'cflags_cc!': ['-std=gnu++17', '-std=gnu++20'],
    'cflags_cc': ['-fPIC', '-Wall', '-Wextra', '-Wno-psabi', "<!@(node -p \"require('./native/sources.json').cpu_flags.join(' ')\")"],
    'xcode_settings': {
      'MACOSX_DEPLOYMENT_TARGET': '11.0',
      'CLANG_CXX_LANGUAGE_STANDARD': 'c++17',
      'OTHER_CPLUSPLUSFLAGS': ["<!@(node -p \"require('./native/sources.json').cpu_flags.join(' ')\")"],
    },
  },
  'targets': [
    {
      'target_name': 'diffit',
      'sources': ["<!@(node -p \"const s = require('./native/sources.json'); [...s.binding, ...s.cpu].join(' ')\")"],
      'defines': ["NAPI_VERSION=<!(node -p \"require('./native/sources.json').napi_version\")"],
      'conditions': [
        ['target_arch=="x64"', {'dependencies': ['cpu_avx512', 'cpu_avx2', 'cpu_baseline']}],
        ['target_arch=="arm64"', {'dependencies': ['cpu_neon']}],
        ['target_arch!="x64" and target_arch!="arm64"', {'dependencies': ['cpu_baseline']}],
        ['OS=="linux"', {'libraries': ['-ldl', '-pthread']}],
      ],
    },
  ],
  'conditions': [
    ['target_arch=="x64"', {
      'targets': [
        {
          'target_name': 'cpu_avx512',
          'type': 'static_library',
          'sources': ['native/cpu/variants/avx512.cc'],
          'cflags_cc': ["<!@(node -p \"require('./native/sources.json').cpu_variants.x64.avx512.join(' ')\")"],
          'xcode_settings': {'OTHER_CPLUSPLUSFLAGS': ["<!@(node -p \"require('./native/sources.json').cpu_variants.x64.avx512.join(' ')\")"]},
        },
        {
          'target_name': 'cpu_avx2',
          'type': 'static_library',
          'sources': ['native/cpu/variants/avx2.cc'],
          'cflags_cc': ["<!@(node -p \"require('./native/sources.json').cpu_variants.x64.avx2.join(' ')\")"],
          'xcode_settings': {'OTHER_CPLUSPLUSFLAGS': ["<!@(node -p \"require('./native/sources.json').cpu_variants.x64.avx2.join(' ')\")"]},
        },
      ],
    }],
    ['target_arch=="arm64"', {
      'targets': [{'target_name': 'cpu_neon', 'type': 'static_library', 'sources': ['native/cpu/variants/neon.cc']}],
    }, {
      'targets': [{'target_name': 'cpu_baseline', 'type': 'static_library', 'sources': ['native/cpu/variants/baseline.cc']}],
    }],
  ],
}
