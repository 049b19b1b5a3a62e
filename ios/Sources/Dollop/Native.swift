// The layer between Swift and C: handles that are closed once, texts that live during a call, threads for blocking calls.
import CDollop
import Foundation

/// A value that a lock guards.
final class Protected<Value>: @unchecked Sendable {
    // Unchecked: the lock guards all accesses to the value.
    private let lock = NSLock()
    private var value: Value

    init(_ value: Value) { self.value = value }

    /// Calls `body` with the value, with the lock held.
    func callAsFunction<Result>(_ body: (inout Value) throws -> Result) rethrows -> Result {
        lock.lock()
        defer { lock.unlock() }
        return try body(&value)
    }
}

/// Owns a native handle. The native library detects a closed handle without reading freed memory, and a running call keeps what it
/// needs. So closing may race with any call.
final class Handle: Sendable {
    private let open: Protected<OpaquePointer?>
    private let name: String
    private let free: @Sendable (OpaquePointer) -> Void

    /// Creates the owner of the handle that `make` writes. `name` is its name in messages; `free` closes it.
    init(
        _ name: String, free: @escaping @Sendable (OpaquePointer) -> Void,
        make: (UnsafeMutablePointer<OpaquePointer?>) throws -> Void
    ) throws {
        var made: OpaquePointer?
        try make(&made)
        self.open = Protected(made)
        self.name = name
        self.free = free
    }

    /// Returns the native handle.
    ///
    /// - Throws: ``DollopError/Status/closed`` after ``close()``.
    func get() throws -> OpaquePointer {
        guard let handle = open({ $0 }) else {
            throw DollopError(status: .closed, message: "the \(name) is closed")
        }
        return handle
    }

    /// Closes the handle. May be called from any thread; further calls have no effect.
    func close() {
        let closing = open { handle in
            defer { handle = nil }
            return handle
        }
        closing.map(free)
    }

    deinit { close() }
}

/// Memory for the texts and arrays of one call. They live as long as the arena.
final class Arena {
    private var allocations: [UnsafeMutableRawPointer] = []

    /// Copies a text as a C string.
    ///
    /// - Throws: ``DollopError/Status/invalid`` if it contains a NUL; the message begins with `name`.
    func text(_ text: String, _ name: String) throws -> UnsafePointer<CChar> {
        // In C, the text would end at the NUL.
        if text.utf8.contains(0) {
            throw DollopError(status: .invalid, message: "\(name) contains a NUL")
        }
        let bytes = Array(text.utf8CString)
        return array(bytes)
    }

    /// Copies a text as a C string; nil becomes NULL.
    func optionalText(_ text: String?, _ name: String) throws -> UnsafePointer<CChar>? {
        try text.map { try self.text($0, name) }
    }

    /// Copies a file URL's path as a C string.
    ///
    /// - Throws: ``DollopError/Status/invalid`` if the URL is not a file URL.
    func path(_ url: URL, _ name: String) throws -> UnsafePointer<CChar> {
        guard url.isFileURL else {
            throw DollopError(status: .invalid, message: "\(name): \(url.absoluteString) is not a file URL")
        }
        return try text(url.path, name)
    }

    /// Copies texts as an array of C strings.
    func texts(_ texts: [String], _ name: String) throws -> UnsafePointer<UnsafePointer<CChar>?> {
        array(try texts.map { try text($0, name) as UnsafePointer<CChar>? })
    }

    /// Copies an array. The pointer is never NULL, even if the array is empty.
    func array<Element>(_ elements: [Element]) -> UnsafePointer<Element> {
        let to = UnsafeMutablePointer<Element>.allocate(capacity: max(elements.count, 1))
        allocations.append(UnsafeMutableRawPointer(to))
        to.initialize(from: elements, count: elements.count)
        return UnsafePointer(to)
    }

    deinit {
        // The elements are numbers and pointers, so they need no deinitialization.
        allocations.forEach { $0.deallocate() }
    }
}

/// Returns the text that `call` writes, and frees the original.
func takeText(_ call: (UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>) throws -> Void) throws -> String {
    var text: UnsafeMutablePointer<CChar>?
    defer { dollop_text_free(text) }
    try call(&text)
    return text.map { String(cString: $0) } ?? ""
}

/// Decodes the JSON text that `call` writes, whose keys are in snake case.
func takeJSON<Value: Decodable>(
    _ type: Value.Type, _ call: (UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>) throws -> Void
) throws -> Value {
    let text = try takeText(call)
    let decoder = JSONDecoder()
    decoder.keyDecodingStrategy = .convertFromSnakeCase
    do {
        return try decoder.decode(type, from: Data(text.utf8))
    } catch {
        throw DollopError(status: .other, message: "\(type) from the library's JSON: \(error)")
    }
}

/// Converts a number to a C type.
///
/// - Throws: ``DollopError/Status/invalid`` if it does not fit; the message begins with `name`.
func number<To: FixedWidthInteger>(_ value: Int, _ name: String) throws -> To {
    guard let number = To(exactly: value) else {
        throw DollopError(status: .invalid, message: "\(name) \(value): it must be \(To.min) to \(To.max)")
    }
    return number
}

/// Starts a thread that runs `body`, which may block. Swift's cooperative pool has few threads, so blocking calls must not run
/// there. The stack is as large as a main thread's; the default is 512 KB on Apple's systems.
func startThread(_ name: String, _ body: @escaping @Sendable () -> Void) {
    let thread = Thread(block: body)
    thread.name = "dev.dollop.\(name)"
    thread.stackSize = 8 << 20
    thread.qualityOfService = .userInitiated
    thread.start()
}

/// Runs `body` on a thread of its own and returns its result.
func onThread<Value: Sendable>(
    _ name: String, _ body: @escaping @Sendable () throws -> Value
) async throws -> Value {
    try await withCheckedThrowingContinuation { continuation in
        startThread(name) { continuation.resume(with: Result(catching: body)) }
    }
}
