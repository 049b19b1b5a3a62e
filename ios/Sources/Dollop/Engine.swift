// A loaded model.
import CDollop
import Foundation

/// A loaded model. Create one engine per model and one ``Chat`` per conversation.
///
/// Any task or thread may use it at any time. A chat keeps what it needs of its engine. So the engine may be closed or released
/// before its chats, even while they generate. Methods of a closed engine throw ``DollopError/Status/closed``.
public final class Engine: Sendable {
    let handle: Handle

    /// Opens a Dollop file. A foreign model is converted into ``EngineOptions/cacheFolder`` first.
    ///
    /// The work runs on a thread of its own. `onProgress` is called on that thread during a conversion, which takes minutes.
    ///
    /// - Throws: ``DollopError``, with ``DollopError/Status/budget`` if the memory budget is too small; the message gives the smallest
    ///   one that works. `CancellationError` if the task is cancelled, which also ends a conversion.
    public convenience init(
        contentsOf url: URL, options: EngineOptions = EngineOptions(),
        onProgress: (@Sendable (OpenProgress) -> Void)? = nil
    ) async throws {
        self.init(try await opened(options, onProgress, Source.url(url)))
    }

    /// Opens a Dollop file from an open file, for files without a lasting path, such as those of a document picker.
    ///
    /// The Dollop file is the part of `length` bytes that begins at `offset`, a multiple of 64. If `length` is nil, it is the rest
    /// of the file. The file descriptor is duplicated, so the caller may close `file` after the call.
    public convenience init(
        contentsOf file: FileHandle, offset: UInt64 = 0, length: UInt64? = nil, options: EngineOptions = EngineOptions()
    ) async throws {
        self.init(try await opened(options, nil, Source.file(file, offset, length)))
    }

    private init(_ handle: Handle) { self.handle = handle }

    /// Plans how opening a model would use the memory. Loads nothing, but converts a foreign model as opening would.
    ///
    /// - Throws: ``DollopError/Status/budget`` if the memory budget is too small.
    public static func plan(
        contentsOf url: URL, options: EngineOptions = EngineOptions(),
        onProgress: (@Sendable (OpenProgress) -> Void)? = nil
    ) async throws -> Plan {
        try await planned(options, onProgress, .url(url))
    }

    /// Plans how opening a Dollop file from an open file would use the memory.
    public static func plan(
        contentsOf file: FileHandle, offset: UInt64 = 0, length: UInt64? = nil, options: EngineOptions = EngineOptions()
    ) async throws -> Plan {
        try await planned(options, nil, .file(file, offset, length))
    }

    /// Returns the system's GPUs; empty if there are none. Querying their drivers may take a second.
    public static func devices() async throws -> [Device] {
        try await onThread("devices") { try takeJSON([Device].self) { try check(dollop_devices_json($0)) } }
    }

    /// The version of the native library, such as "0.1.0".
    public static var libraryVersion: String { String(cString: dollop_version()) }

    /// The model's names, dimensions and sizes.
    public var info: ModelInfo {
        get throws { try takeJSON(ModelInfo.self) { try check(dollop_engine_info_json(handle.get(), $0)) } }
    }

    /// The counters since the engine was opened. May be read during a generation.
    public var stats: Stats {
        get throws { try takeJSON(Stats.self) { try check(dollop_engine_stats_json(handle.get(), $0)) } }
    }

    /// What the memory is used for now. May be read during a generation.
    public var plan: Plan {
        get throws {
            let plan = try planHandle { try check(dollop_engine_plan(handle.get(), $0)) }
            return try takeJSON(Plan.self) { try check(dollop_plan_json(plan.get(), $0)) }
        }
    }

    /// Returns the token ids of a text. With `addSpecial`, the tokens that the model expects at the beginning of a text come first.
    public func tokenize(_ text: String, addSpecial: Bool = false) throws -> [TokenID] {
        let arena = Arena()
        return try withExtendedLifetime(arena) {
            let (engine, text) = (try handle.get(), try arena.text(text, "the text"))
            var count = 0
            try check(dollop_engine_tokenize(engine, text, addSpecial ? 1 : 0, nil, 0, &count))
            return try [TokenID](unsafeUninitializedCapacity: count) { ids, written in
                try check(dollop_engine_tokenize(engine, text, addSpecial ? 1 : 0, ids.baseAddress, count, &written))
            }
        }
    }

    /// Returns the text of token ids. With `skipSpecial`, special tokens, which are not text, are omitted.
    ///
    /// - Throws: ``DollopError/Status/invalid`` for an id outside the vocabulary.
    public func detokenize(_ ids: [TokenID], skipSpecial: Bool = true) throws -> String {
        try takeText { to in
            try check(dollop_engine_detokenize(handle.get(), ids, ids.count, skipSpecial ? 1 : 0, to))
        }
    }

    /// Renders messages with the model's chat template. With `addGenerationPrompt`, the text ends with the beginning of an answer.
    public func render(_ messages: [Message], addGenerationPrompt: Bool = true) throws -> String {
        let arena = Arena()
        return try withExtendedLifetime(arena) {
            let list = try arena.messages(messages)
            return try takeText { to in
                try check(dollop_engine_render(handle.get(), list, messages.count, addGenerationPrompt ? 1 : 0, to))
            }
        }
    }

    /// The sampling that the model's file recommends, with the library's defaults for what it leaves out.
    public var sampling: Sampling {
        get throws { try Sampling(of: handle) }
    }

    /// Gives memory back to the system, or takes it again. The budget stays.
    ///
    /// May be called during a generation; its text stays the same at exact precision. This waits for the current layer, on a thread
    /// of its own.
    /// - Returns: the bytes given back to the system.
    @discardableResult
    public func trim(_ level: TrimLevel) async throws -> UInt64 {
        try await onThread("trim") { [handle] in
            var given: UInt64 = 0
            try check(dollop_engine_trim(handle.get(), level.rawValue, &given))
            return given
        }
    }

    /// Sets another memory budget, in bytes. Otherwise the same as ``trim(_:)``.
    ///
    /// - Returns: the bytes given back to the system.
    /// - Throws: ``DollopError/Status/budget`` if the budget is too small; the old one then stays.
    @discardableResult
    public func setMemory(_ bytes: UInt64) async throws -> UInt64 {
        try await onThread("memory") { [handle] in
            var given: UInt64 = 0
            try check(dollop_engine_set_memory(handle.get(), bytes, &given))
            return given
        }
    }

    /// Closes the engine, as releasing it does. Its chats stay usable. Further calls have no effect.
    public func close() { handle.close() }
}

/// Where a model is read from: a path, or an open file with an offset and a length.
private enum Source: Sendable {
    case url(URL)
    case file(FileHandle, UInt64, UInt64?)
}

/// Runs `body` on a thread of its own. Cancelling the task ends a conversion in it.
private func opening<Value: Sendable>(
    _ report: (@Sendable (OpenProgress) -> Void)?, _ body: @escaping @Sendable (Opening) throws -> Value
) async throws -> Value {
    try Task.checkCancellation()
    let opening = Opening(report)
    return try await withTaskCancellationHandler {
        do {
            let value = try await onThread("open") { try body(opening) }
            try Task.checkCancellation()
            return value
        } catch let error as DollopError where error.status == .cancelled && Task.isCancelled {
            throw CancellationError()
        }
    } onCancel: {
        opening.cancel()
    }
}

/// Opens a model.
private func opened(
    _ options: EngineOptions, _ report: (@Sendable (OpenProgress) -> Void)?, _ source: Source
) async throws -> Handle {
    guard dollop_abi_version() == UInt32(DOLLOP_ABI_VERSION) else {
        let text = "libdollop has ABI version \(dollop_abi_version()), and this package needs \(DOLLOP_ABI_VERSION)"
        throw DollopError(status: .unsupported, message: text)
    }
    return try await opening(report) { opening in
        try Handle("engine", free: { _ = dollop_engine_free($0) }) { to in
            try opening.with(options) { native in
                switch source {
                case .url(let url):
                    try withPath(url) { try check(dollop_engine_open($0, &native, to)) }
                case .file(let file, let offset, let length):
                    let fd = try descriptor(file, length)
                    try check(dollop_engine_open_file(fd, offset, length ?? 0, &native, to))
                }
            }
        }
    }
}

/// Plans a model's memory.
private func planned(
    _ options: EngineOptions, _ report: (@Sendable (OpenProgress) -> Void)?, _ source: Source
) async throws -> Plan {
    try await opening(report) { opening in
        let plan = try planHandle { to in
            try opening.with(options) { native in
                switch source {
                case .url(let url):
                    try withPath(url) { try check(dollop_plan_new($0, &native, to)) }
                case .file(let file, let offset, let length):
                    let fd = try descriptor(file, length)
                    try check(dollop_plan_new_file(fd, offset, length ?? 0, &native, to))
                }
            }
        }
        return try takeJSON(Plan.self) { try check(dollop_plan_json(plan.get(), $0)) }
    }
}

private func planHandle(_ make: (UnsafeMutablePointer<OpaquePointer?>) throws -> Void) throws -> Handle {
    try Handle("plan", free: { _ = dollop_plan_free($0) }, make: make)
}

/// Returns the file's descriptor. Throws for a length of 0, which means the rest of the file in C.
private func descriptor(_ file: FileHandle, _ length: UInt64?) throws -> Int32 {
    if length == 0 { throw DollopError(status: .invalid, message: "length 0: the part has no bytes") }
    return file.fileDescriptor
}

/// Calls `body` with the URL's path, as a C string that lives during the call.
func withPath<Result>(_ url: URL, _ body: (UnsafePointer<CChar>) throws -> Result) throws -> Result {
    let arena = Arena()
    return try withExtendedLifetime(arena) { try body(arena.path(url, "the path")) }
}
