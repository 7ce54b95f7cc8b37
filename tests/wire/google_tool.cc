// Google's C++ library on the other side of the wire, for test_conformance.py:
//   google_tool < frame > frame    verify with the generated verifier, unpack into objects, build again
// The script writes messages.inc: the generated headers and MESSAGES(X), one X(type) for each message.
#include <cstdio>
#include <vector>

#include "messages.inc"

namespace
{

template <class Object, class Root>
int Rebuild(const Root *root, bool verified,
            void (*finish)(flatbuffers::FlatBufferBuilder &, flatbuffers::Offset<Root>),
            flatbuffers::Offset<Root> (*create)(flatbuffers::FlatBufferBuilder &, const Object *,
                                                const flatbuffers::rehasher_function_t *))
{
    if (!verified) {
        std::fprintf(stderr, "the generated verifier refuses it\n");
        return 1;
    }
    Object object;
    root->UnPackTo(&object);
    flatbuffers::FlatBufferBuilder builder;
    finish(builder, create(builder, &object, nullptr));
    std::fwrite(builder.GetBufferPointer(), 1, builder.GetSize(), stdout);
    return 0;
}

} // namespace

int main()
{
    // 8-byte aligned, as the generated accessors want it.
    std::vector<uint64_t> words((16u << 20) / 8);
    const auto *frame = reinterpret_cast<uint8_t *>(words.data());
    size_t bytes = std::fread(words.data(), 1, words.size() * 8, stdin);
    flatbuffers::Verifier verifier(frame, bytes);
#define X(type)                                                                                  \
    if (bytes > 8 && quintet::type##BufferHasIdentifier(frame))                                  \
        return Rebuild<quintet::type##T, quintet::type>(quintet::Get##type(frame),               \
                                                        quintet::Verify##type##Buffer(verifier), \
                                                        quintet::Finish##type##Buffer, quintet::Create##type);
    MESSAGES(X)
#undef X
    std::fprintf(stderr, "no such file identifier\n");
    return 1;
}
