// A loaded model.
import CDollop
import Foundation

/// A loaded model. One engine for a model, a ``ChatSession`` for each conversation.
///
/// Any task or thread may use it at any time. A chat keeps what it needs of its engine, so the engine may be closed or released
/// before its chats, also while they generate.
public final class Engine: Sendable {
    let handle: Handle

    /// Opens a Dollop file, or converts a foreign model into ``EngineOptions/cacheFolder`` and opens that.
    ///
    /// The work is done on a thread of its own. `onProgress` is called on it during a conversion, which takes minutes; a
    /// cancelled task ends the conversion and throws `CancellationError`.
    ///
    /// - Throws: ``DollopError``; ``DollopError/Status/budget`` if the memory cannot work, and the message says what would.
    public convenience init(
        contentsOf url: URL, options: EngineOptions = EngineOptions(),
        onProgress: (@Sendable (OpenProgress) -> Void)? = nil
    ) async throws {
        self.init(try await opened(options, onProgress, Source.url(url)))
    }

    /// Opens a Dollop file that lies in an open file: `length` bytes from `offset` on, a multiple of 64, or to the end.
    ///
    /// The descriptor is duplicated: the caller closes its own whenever it likes. For files that have no path that stays, such as
    /// those of a document picker.
    public convenience init(
        contentsOf file: FileHandle, offset: UInt64 = 0, length: UInt64? = nil, options: EngineOptions = EngineOptions()
    ) async throws {
        self.init(try await opened(options, nil, Source.file(file, offset, length)))
    }

    private init(_ handle: Handle) { self.handle = handle }

    /// What opening a model would do with the memory. Loads nothing, but converts a foreign model as opening would.
    public static func plan(
        contentsOf url: URL, options: EngineOptions = EngineOptions(),
        onProgress: (@Sendable (OpenProgress) -> Void)? = nil
    ) async throws -> MemoryPlan {
        try await planned(options, onProgress, .url(url))
    }

    /// The same for a Dollop file in an open file.
    public static func plan(
        contentsOf file: FileHandle, offset: UInt64 = 0, length: UInt64? = nil, options: EngineOptions = EngineOptions()
    ) async throws -> MemoryPlan {
        try await planned(options, nil, .file(file, offset, length))
    }

    /// The GPUs. Asks the drivers, which may take a second; none is no failure.
    public static func devices() async throws -> [Device] {
        try await onThread("devices") { try takeJSON([Device].self) { try check(dollop_devices_json($0)) } }
    }

    /// The version of the native library, such as "0.1.0".
    public static var libraryVersion: String { String(cString: dollop_version()) }

    /// The model in names and numbers.
    public var info: ModelInfo {
        get throws { try takeJSON(ModelInfo.self) { try check(dollop_engine_info_json(handle.get(), $0)) } }
    }

    /// What the engine has done since it was opened; also during a generation.
    public var statistics: Statistics {
        get throws { try takeJSON(Statistics.self) { try check(dollop_engine_stats_json(handle.get(), $0)) } }
    }

    /// What the memory is spent on now.
    public var plan: MemoryPlan {
        get throws {
            let plan = try planHandle { try check(dollop_engine_plan(handle.get(), $0)) }
            return try takeJSON(MemoryPlan.self) { try check(dollop_plan_json(plan.get(), $0)) }
        }
    }

    /// Turns text into tokens, those that the model wants at the beginning of a text first if `addSpecial`.
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

    /// Turns tokens into text; with `skipSpecial` those that are no text are left out.
    public func detokenize(_ ids: [TokenID], skipSpecial: Bool = true) throws -> String {
        try takeText { to in
            try check(dollop_engine_detokenize(handle.get(), ids, ids.count, skipSpecial ? 1 : 0, to))
        }
    }

    /// Messages as the model's chat template writes them, with the beginning of an answer at the end if `answering`.
    public func render(_ messages: [Message], answering: Bool = true) throws -> String {
        let arena = Arena()
        return try withExtendedLifetime(arena) {
            let list = try arena.messages(messages)
            return try takeText { to in
                try check(dollop_engine_render(handle.get(), list, messages.count, answering ? 1 : 0, to))
            }
        }
    }

    /// How tokens are chosen where ``Sampling`` says nothing: what the model's file advises.
    public var sampling: Sampling {
        get throws { try Sampling(of: handle) }
    }

    /// Gives memory back, or takes it again, as the system asks for it; the budget stays.
    ///
    /// Also during a generation, whose text stays the same at exact precision. Waits for the layer in hand, on a thread of its own.
    /// - Returns: the bytes that went back to the system.
    @discardableResult
    public func trim(_ level: TrimLevel) async throws -> UInt64 {
        try await onThread("trim") { [handle] in
            var given: UInt64 = 0
            try check(dollop_engine_trim(handle.get(), level.rawValue, &given))
            return given
        }
    }

    /// Gives the engine another budget, in bytes; otherwise as ``trim(_:)``.
    ///
    /// - Throws: ``DollopError/Status/budget`` below the smallest that works; the old budget stays then.
    @discardableResult
    public func setMemory(_ bytes: UInt64) async throws -> UInt64 {
        try await onThread("memory") { [handle] in
            var given: UInt64 = 0
            try check(dollop_engine_set_memory(handle.get(), bytes, &given))
            return given
        }
    }

    /// Closes the engine; its chats go on. Any number of times; releasing the engine does the same.
    public func close() { handle.close() }
}

/// Where a model lies.
private enum Source: Sendable {
    case url(URL)
    case file(FileHandle, UInt64, UInt64?)
}

/// Runs `body` on a thread of its own, which cancelling the task ends where that can be.
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

private func planned(
    _ options: EngineOptions, _ report: (@Sendable (OpenProgress) -> Void)?, _ source: Source
) async throws -> MemoryPlan {
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
        return try takeJSON(MemoryPlan.self) { try check(dollop_plan_json(plan.get(), $0)) }
    }
}

private func planHandle(_ make: (UnsafeMutablePointer<OpaquePointer?>) throws -> Void) throws -> Handle {
    try Handle("plan", free: { _ = dollop_plan_free($0) }, make: make)
}

/// The file's descriptor. A length of 0 would mean the rest of the file in C.
private func descriptor(_ file: FileHandle, _ length: UInt64?) throws -> Int32 {
    if length == 0 { throw DollopError(status: .invalid, message: "length 0: the part has no bytes") }
    return file.fileDescriptor
}

/// Calls `body` with a path as the system spells it.
func withPath<Result>(_ url: URL, _ body: (UnsafePointer<CChar>) throws -> Result) throws -> Result {
    let arena = Arena()
    return try withExtendedLifetime(arena) { try body(arena.path(url, "the path")) }
}
