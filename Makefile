# Quintet. `make help` lists the targets.
#
# `make run` and `make test` do everything on a fresh Debian 12 or Ubuntu 24.04: install packages, build, run.
# Variants of the build live side by side: build/ (release), build/asan/, build/tsan/, build/cuda/; VARIANT=asan chooses.

VARIANT ?= release
ifeq ($(origin CC),default)
CC := gcc
endif
CLANG ?= clang
PYTHON ?= python3
FLATC ?= flatc
PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
JOBS ?= $(shell nproc)

ifeq ($(VARIANT),release)
B := build
OPTIMISE := -O2
else ifeq ($(VARIANT),asan)
B := build/asan
OPTIMISE := -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -DQN_CHECKED=1
else ifeq ($(VARIANT),tsan)
B := build/tsan
OPTIMISE := -O1 -fsanitize=thread -fno-omit-frame-pointer -DQN_CHECKED=1
else ifeq ($(VARIANT),fuzz)
B := build/fuzz
CC := $(CLANG)
OPTIMISE := -O1 -fsanitize=fuzzer-no-link,address,undefined -fno-omit-frame-pointer -DQN_CHECKED=1
else ifeq ($(VARIANT),cuda)
B := build/cuda
OPTIMISE := -O2
else
$(error VARIANT is $(VARIANT); it is one of release, asan, tsan, fuzz, cuda)
endif

PACKAGES := gcc g++ make pkg-config libczmq-dev libzmq3-dev libyaml-dev libsystemd-dev \
	libjansson-dev libpcre2-dev libutf8proc-dev libcurl4-openssl-dev libxxhash-dev libcmocka-dev flatbuffers-compiler \
	libflatbuffers-dev python3 python3-venv curl ca-certificates
LIBRARIES := libczmq libzmq yaml-0.1 libsystemd jansson libpcre2-8 libutf8proc libcurl libxxhash

VERSION := 0.1.0
# The commit; "-dirty" when tracked files differ from it.
BUILD_ID := $(VERSION)+$(shell git describe --always --dirty --abbrev=12 --exclude='*' 2>/dev/null || echo unknown)

G := build/gen
CPPFLAGS += -D_GNU_SOURCE -I. -I$(G)
# Warnings are errors in CI, not for users with a newer compiler.
WARNINGS := -Wall -Wextra -Wshadow $(if $(CI),-Werror)
CFLAGS ?= -g
ALL_CFLAGS = -std=c11 $(WARNINGS) $(OPTIMISE) $(CFLAGS) -pthread
LDLIBS = $(shell pkg-config --libs $(LIBRARIES)) $(CUDA_LIBS) -ldl -lm -pthread
# A policy in a shared object calls nothing of ours, but Python and policies may: keep symbols visible.
LDFLAGS += -rdynamic

SERVICES := frontend tokenizer scheduler memory compute
MAINS := $(SERVICES:%=services/%/main.c) tools/main.c
VECTOR_FILES := $(wildcard kernels/cpu/*_vector.c kernels/cpu/*/*_vector.c)
SOURCES := $(filter-out $(MAINS) $(VECTOR_FILES),$(wildcard common/*.c common/*/*.c common/*/*/*.c services/*/*.c services/*/*/*.c \
	kernels/*.c kernels/bench/*.c kernels/cpu/*.c kernels/cpu/*/*.c tools/*.c tools/*/*.c))
OBJECTS := $(SOURCES:%.c=$(B)/obj/%.o) $(foreach isa,avx2 avx512,$(VECTOR_FILES:%.c=$(B)/obj/%_$(isa).o)) $(B)/obj/gen/qn_messages.o $(B)/obj/gen/qn_methods.o
ARCHIVE := $(B)/obj/libquintet.a
BINARIES := $(SERVICES:%=$(B)/quintet-%) $(B)/quintet
include cuda.mk
KERNEL_OBJECTS := $(patsubst deploy/kernels/%.c,$(B)/kernels/%.so,$(wildcard deploy/kernels/*.c))
POLICIES := $(patsubst deploy/policies/%.c,$(B)/policies/%.so,$(wildcard deploy/policies/*.c))

TEST_SOURCES := $(wildcard tests/unit/*.c tests/flow/*.c tests/sim/*.c tests/golden/*.c tests/wire/*.c tests/process/*.c tests/chaos/*.c)
TEST_PROGRAMS := $(TEST_SOURCES:tests/%.c=$(B)/tests/%)
FUZZERS := $(patsubst tests/fuzz/%.c,$(B)/fuzzers/%,$(wildcard tests/fuzz/fuzz_*.c))
SCHEMAS := $(filter-out schemas/released/%,$(wildcard schemas/*.fbs schemas/*/*.fbs))
EXAMPLES := $(SCHEMAS:%.fbs=%.json)
VENV := build/venv

.DEFAULT_GOAL := all
.PHONY: help all always deps run test check test-programs asan tsan fuzzers fuzz chaos bench bench-tokenizer bench-llamacpp install uninstall \
	clean venv format format-check tidy compile-commands
.DELETE_ON_ERROR:
.SECONDARY:

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

all: $(BINARIES) $(POLICIES) $(KERNEL_OBJECTS) ## build the five daemons, the quintet command, the example policies and kernels into build/

# ---- packages -------------------------------------------------------------------------------------------------

deps: ## install the Debian packages that are missing (apt-get, with sudo when not root)
	@deploy/install-packages.sh $(PACKAGES)

# ---- generated code -------------------------------------------------------------------------------------------

$(G)/qn_messages.h: $(wildcard schemas/*.py) $(SCHEMAS) $(wildcard $(EXAMPLES))
	@mkdir -p $(G)
	@echo "  GEN     $@"
	@$(PYTHON) schemas/generate.py --flatc $(FLATC) --out $(G) $(SCHEMAS)
$(G)/qn_messages.c $(G)/qn_methods.h $(G)/qn_methods.c $(G)/qn_limits.h: $(G)/qn_messages.h ;

$(B)/obj/gen/%.o: $(G)/%.c
	@mkdir -p $(@D)
	@echo "  CC      $<"
	@$(CC) $(CPPFLAGS) $(ALL_CFLAGS) -MMD -MP -c $< -o $@

# ---- objects --------------------------------------------------------------------------------------------------

AVX2 := -mavx2 -mfma -mf16c
AVX512 := $(AVX2) -mavx512f -mavx512bw -mavx512vl -mavx512dq
# A *_vector.c is compiled once per vector width (kernels/cpu/vector/vector.h); another file that needs instructions says so in its name.
%_avx2.o: ISA := $(AVX2)
%_avx512.o: ISA := $(AVX512)
%_avx512vnni.o: ISA := $(AVX512) -mavx512vnni
%_avx512bf16.o: ISA := $(AVX512) -mavx512bf16
ifneq ($(filter release cuda,$(VARIANT)),)
$(B)/obj/kernels/%.o $(B)/obj/services/memory/weights/weights_number.o: OPTIMISE += -O3
endif
# Unrolled intrinsics have no arithmetic that UBSan knows, but take it minutes to compile; ASan watches their loads.
ifneq ($(filter asan fuzz,$(VARIANT)),)
%_avx2.o %_avx512.o %_avx512vnni.o %_avx512bf16.o: OPTIMISE += -fno-sanitize=undefined
endif
# gcc's frames for use-after-return are aligned to 32 bytes at most, a vector of AVX-512 needs 64.
ifeq ($(VARIANT),asan)
%_avx2.o %_avx512.o %_avx512vnni.o %_avx512bf16.o: OPTIMISE += $(if $(findstring gcc,$(CC)),--param asan-use-after-return=0)
endif
# The page is part of the object (.incbin).
$(B)/obj/services/frontend/methods/docs.o: services/frontend/methods/docs.html
$(B)/obj/common/build.o: CPPFLAGS += -DQN_BUILD='"$(BUILD_ID)"'
$(B)/obj/common/build.o: $(B)/build-id
# Written again only when it is another one.
$(B)/build-id: always
	@mkdir -p $(@D)
	@echo '$(BUILD_ID)' | cmp -s - $@ || echo '$(BUILD_ID)' >$@

define COMPILE
	@mkdir -p $(@D)
	@echo "  CC      $(@:$(B)/obj/%.o=%)"
	@$(CC) $(CPPFLAGS) $(ALL_CFLAGS) $(ISA) -MMD -MP -c $< -o $@
endef
$(B)/obj/%_vector_avx2.o: %_vector.c | $(G)/qn_messages.h
	$(COMPILE)
$(B)/obj/%_vector_avx512.o: %_vector.c | $(G)/qn_messages.h
	$(COMPILE)
$(B)/obj/%.o: %.c | $(G)/qn_messages.h
	$(COMPILE)

$(ARCHIVE): $(OBJECTS)
	@rm -f $@
	@echo "  AR      $@"
	@ar rcs $@ $(OBJECTS)

$(B)/quintet-%: $(B)/obj/services/%/main.o $(ARCHIVE)
	@echo "  LD      $@"
	@$(CC) $(ALL_CFLAGS) $(LDFLAGS) $< $(ARCHIVE) $(LDLIBS) -o $@

$(B)/quintet: $(B)/obj/tools/main.o $(ARCHIVE)
	@echo "  LD      $@"
	@$(CC) $(ALL_CFLAGS) $(LDFLAGS) $< $(ARCHIVE) $(LDLIBS) -o $@

$(B)/policies/%.so: deploy/policies/%.c common/policy.h
	@mkdir -p $(@D)
	@echo "  LD      $@"
	@$(CC) $(CPPFLAGS) -std=c11 $(WARNINGS) -O2 $(CFLAGS) -fPIC -shared $< -o $@

# Objects that tests load: all.c as it is, and wrong in one way each.
TEST_OBJECTS := $(B)/tests/kernels/all.so $(patsubst %,$(B)/tests/kernels/wrong_%.so,1 2 3 4 5 6 7 8 9 10)
define LINK_TEST_OBJECT
	@mkdir -p $(@D)
	@echo "  LD      $@"
	@$(CC) $(CPPFLAGS) -std=c11 $(WARNINGS) -O2 $(CFLAGS) $(if $*,-DFAULT=$*) -fPIC -shared $< -lm -o $@
endef
$(B)/tests/kernels/wrong_%.so: tests/kernels/all.c kernels/plugin.h
	$(LINK_TEST_OBJECT)
$(B)/tests/kernels/all.so: tests/kernels/all.c kernels/plugin.h
	$(LINK_TEST_OBJECT)

$(B)/kernels/%.so: deploy/kernels/%.c kernels/plugin.h
	@mkdir -p $(@D)
	@echo "  LD      $@"
	@$(CC) $(CPPFLAGS) -std=c11 $(WARNINGS) -O3 $(CFLAGS) -fPIC -shared $< -lm -o $@

$(B)/tests/%: tests/%.c $(ARCHIVE)
	@mkdir -p $(@D)
	@echo "  LD      $@"
	@$(CC) $(CPPFLAGS) $(ALL_CFLAGS) -MMD -MP -MF $@.d $(LDFLAGS) $< $(ARCHIVE) $(LDLIBS) -lcmocka -o $@

-include $(shell find $(B)/obj $(B)/tests -name '*.d' 2>/dev/null)

# ---- run and test ---------------------------------------------------------------------------------------------

run: deps ## install, build, start the five services on the bundled model, answer a prompt
	@$(MAKE) --no-print-directory -j$(JOBS) all
	@tools/make_run.sh

venv: $(VENV)/ready ## the Python environment of the tests
$(VENV)/ready: tests/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

test-programs: $(TEST_PROGRAMS) $(TEST_OBJECTS)

test: deps ## install, build, run every test that CI runs
	@$(MAKE) --no-print-directory -j$(JOBS) all test-programs
	@$(MAKE) --no-print-directory -j$(JOBS) VARIANT=asan all test-programs
	@$(MAKE) --no-print-directory format-check tidy
	@$(VENV)/bin/python tests/run.py ci

check: all test-programs ## quick: the release build's C tests only
	@$(PYTHON) tests/run.py quick

asan: ## the whole C test suite under AddressSanitizer and UndefinedBehaviorSanitizer
	@$(MAKE) --no-print-directory -j$(JOBS) VARIANT=asan all test-programs
	@$(PYTHON) tests/run.py asan

tsan: ## everything that runs threads, and the inproc composition under load, under ThreadSanitizer
	@$(MAKE) --no-print-directory -j$(JOBS) VARIANT=tsan all test-programs
	@$(MAKE) --no-print-directory venv
	@$(VENV)/bin/python tests/run.py tsan

$(B)/fuzzers/%: tests/fuzz/%.c $(ARCHIVE)
	@mkdir -p $(@D)
	@echo "  LD      $@"
	@$(CC) $(CPPFLAGS) $(ALL_CFLAGS) -fsanitize=fuzzer $(LDFLAGS) $< $(ARCHIVE) $(LDLIBS) -o $@

fuzzers: $(FUZZERS)

fuzz: ## every fuzz target for FUZZ_SECONDS each (default 60); needs clang, installs it
	@deploy/install-packages.sh clang
	@$(MAKE) --no-print-directory -j$(JOBS) VARIANT=fuzz fuzzers build/fuzz/tests/wire/wire_tool
	@tests/fuzz/make_seeds_wire.sh build/fuzz/tests/wire/wire_tool build/fuzz/seeds/wire
	@tests/fuzz/make_seeds_model_config.sh build/fuzz/seeds/model_config
	@$(PYTHON) tests/fuzz/make_seeds_tokenizer_json.py build/fuzz/seeds/tokenizer_json
	@$(PYTHON) tests/fuzz/make_seeds_side_files.py build/fuzz/seeds/side_files
	@$(PYTHON) tests/fuzz/make_seeds_safetensors.py build/fuzz/seeds/safetensors
	@$(PYTHON) tests/run.py fuzz

chaos: all venv ## SIGKILL under load, 320 times, and scoring while daemons die (10 minutes)
	@$(VENV)/bin/python tests/chaos/kills.py
	@$(VENV)/bin/python tests/chaos/scoring.py

bench: all $(B)/tests/wire/wire_tool ## what the split costs, the time per hop and per method call, the wire (BENCH_ROUNDS, default 7)
	@$(PYTHON) tests/bench/wire.py
	@$(PYTHON) tests/bench/methods.py
	@$(PYTHON) tests/bench/split.py $(BENCH_ROUNDS)
	@$(PYTHON) tests/bench/split.py $(BENCH_ROUNDS) --model deploy/shapes/qwen2.5-0.5b --tokens 48

# Comparisons with others have a Python environment of their own.
BENCH_VENV := build/bench-venv
$(BENCH_VENV)/ready: tests/bench/requirements.txt
	@$(PYTHON) -m venv $(BENCH_VENV)
	@$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

bench-tokenizer: all $(BENCH_VENV)/ready ## encoding speed beside Hugging Face tokenizers, one thread
	@$(BENCH_VENV)/bin/python tests/bench/tokenizer.py

bench-llamacpp: all $(BENCH_VENV)/ready ## decode and prefill beside llama.cpp (builds it: 15 minutes, 3 GB of weights)
	@deploy/install-packages.sh cmake
	@CMAKE_ARGS=-DGGML_NATIVE=ON $(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		--no-binary llama-cpp-python llama-cpp-python gguf numpy
	@$(BENCH_VENV)/bin/python tests/bench/llamacpp.py

# ---- style ----------------------------------------------------------------------------------------------------

C_FILES = $(shell git ls-files '*.c' '*.h' '*.cu' '*.cuh' '*.cc')

format: venv ## write every C and CUDA source in the one style (.clang-format)
	@echo $(C_FILES) | xargs -n 40 $(VENV)/bin/clang-format -i

format-check: venv ## fail when a source is not in the one style
	@echo $(C_FILES) | xargs -n 40 $(VENV)/bin/clang-format --dry-run -Werror

# The kernels compiled for an instruction set, or with CUDA's headers, are the compilers' own business.
TIDY_FILES = $(filter-out %_vector.c kernels/cpu/%_avx2.c kernels/cpu/%_avx512.c kernels/cpu/%_avx512vnni.c \
	kernels/cpu/%_avx512bf16.c kernels/cuda/% tests/gpu/% tests/fuzz/%,$(filter-out $(wildcard */*/*cuda*.c */*/*/*cuda*.c */*/*gpu*.c \
	*/*gpu*.c tests/unit/test_wire_damage.c),$(filter %.c,$(C_FILES))))

tidy: venv $(G)/qn_messages.h ## clang-tidy with the checks of .clang-tidy
	@echo $(TIDY_FILES) | xargs -n 16 -P $(JOBS) sh -c '$(VENV)/bin/clang-tidy --quiet "$$@" -- -std=c11 $(CPPFLAGS) \
		2>/dev/null' tidy

compile-commands: $(G)/qn_messages.h ## compile_commands.json for editors and language servers
	@$(PYTHON) -c 'import json, os, sys; print(json.dumps([{"directory": os.getcwd(), "file": name, "arguments": \
		sys.argv[1].split() + ["-c", name]} for name in sys.argv[2:]], indent=1))' \
		"$(CC) $(CPPFLAGS) $(ALL_CFLAGS)" $(filter %.c,$(C_FILES)) > compile_commands.json

# ---- install --------------------------------------------------------------------------------------------------

# Units and sysusers files name absolute places; what DESTDIR holds is for another root, so nothing is activated there.
SHARE := $(PREFIX)/share/quintet
UNITS := $(PREFIX)/lib/systemd/system

install: all ## install into $(DESTDIR)$(PREFIX) with units and /etc/quintet/config.yaml (kept when it is there)
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(SHARE)/models $(DESTDIR)$(SHARE)/schemas \
		$(DESTDIR)$(PREFIX)/lib/quintet/policies $(DESTDIR)$(PREFIX)/lib/quintet/kernels $(DESTDIR)$(PREFIX)/include/quintet/kernels $(DESTDIR)$(UNITS) \
		$(DESTDIR)$(PREFIX)/lib/sysusers.d $(DESTDIR)$(SYSCONFDIR)/quintet
	install -m 755 $(BINARIES) $(DESTDIR)$(PREFIX)/bin
	install -m 644 $(POLICIES) $(DESTDIR)$(PREFIX)/lib/quintet/policies
	install -m 644 $(KERNEL_OBJECTS) $(DESTDIR)$(PREFIX)/lib/quintet/kernels
	install -m 644 common/policy.h $(DESTDIR)$(PREFIX)/include/quintet
	install -m 644 kernels/plugin.h $(DESTDIR)$(PREFIX)/include/quintet/kernels
	cd schemas && find . -path ./released -prune -o -name '*.fbs' -exec install -D -m 644 {} $(abspath $(DESTDIR)$(SHARE)/schemas)/{} \;
	install -m 644 schemas/README.md $(DESTDIR)$(SHARE)/schemas
	install -m 644 config.yaml $(DESTDIR)$(SHARE)/config.yaml
	cp -r deploy/models/default $(DESTDIR)$(SHARE)/models/
	cp -r deploy/shapes $(DESTDIR)$(SHARE)/
	[ -e $(DESTDIR)$(SYSCONFDIR)/quintet/config.yaml ] || \
		install -m 644 config.yaml $(DESTDIR)$(SYSCONFDIR)/quintet/config.yaml
	cp -r deploy/systemd/*.service deploy/systemd/*.target deploy/systemd/*.service.d $(DESTDIR)$(UNITS)/
	sed -i 's|/usr/local/|$(PREFIX)/|g; s|/etc/|$(SYSCONFDIR)/|g' $(DESTDIR)$(UNITS)/quintet-*.service \
		$(DESTDIR)$(UNITS)/quintet-.service.d/*.conf
	install -m 644 deploy/systemd/quintet.sysusers $(DESTDIR)$(PREFIX)/lib/sysusers.d/quintet.conf
	@[ -n "$(DESTDIR)" ] || deploy/systemd/activate.sh $(PREFIX)

uninstall: ## remove what install put there; /etc/quintet and the user stay
	rm -f $(BINARIES:$(B)/%=$(DESTDIR)$(PREFIX)/bin/%) $(DESTDIR)$(PREFIX)/lib/sysusers.d/quintet.conf
	rm -f $(patsubst deploy/systemd/%,$(DESTDIR)$(UNITS)/%,$(wildcard deploy/systemd/*.service deploy/systemd/*.target))
	rm -rf $(DESTDIR)$(SHARE) $(DESTDIR)$(PREFIX)/lib/quintet $(DESTDIR)$(PREFIX)/include/quintet \
		$(DESTDIR)$(UNITS)/quintet-.service.d
	@[ -n "$(DESTDIR)" ] || deploy/systemd/activate.sh $(PREFIX)

clean: ## remove build/
	rm -rf build
