// Passes the library's log messages to a listener. There is one per process, as in the native library.
import CDollop
import Foundation

/// The severity of a log message, most severe first.
public enum LogLevel: UInt32, Sendable, Hashable, CaseIterable, Comparable {
    /// Failures.
    case error = 1
    /// Problems that were solved: a GPU that the CPU replaces, a read or a conversion that is repeated.
    case warn
    /// Opened models, and conversions.
    case info
    /// Choices: the memory plan, the instruction set, the method of reading. Also prompts, resizes, and sessions saved and restored.
    case debug
    /// Every plane of an expert that is read or evicted.
    case trace

    /// Whether `a` is more severe than `b`.
    public static func < (a: LogLevel, b: LogLevel) -> Bool { a.rawValue < b.rawValue }
}

/// The library's log. Messages go nowhere until ``listen(_:_:)`` sets a listener.
public enum DollopLog {
    /// Receives one message: its level, the part of the library that it comes from, such as "dollop::session", and one line for
    /// display.
    public typealias Listener = @Sendable (_ level: LogLevel, _ target: String, _ message: String) -> Void

    /// Sets the listener for messages up to `level`, and replaces the previous one.
    ///
    /// The listener runs on the thread that logs, which may be one of the library's own, and on several at a time. Messages that the
    /// library logs on its thread while it runs are dropped.
    ///
    /// - Throws: ``DollopError/Status/busy`` if called from a listener.
    public static func listen(_ level: LogLevel = .info, _ listener: @escaping Listener) throws {
        try set(Box(listener), level.rawValue)
    }

    /// Removes the listener. When this returns, the listener is not running. This waits for it, so the caller must not hold a lock
    /// that the listener takes.
    ///
    /// - Throws: ``DollopError/Status/busy`` if called from a listener.
    public static func stop() throws { try set(nil, UInt32(DOLLOP_LOG_OFF)) }

    /// A listener, to which the native library has a pointer.
    private final class Box: Sendable {
        let receive: Listener
        init(_ receive: @escaping Listener) { self.receive = receive }
    }

    /// The current listener.
    private static let current = Protected<Box?>(nil)
    /// A thread's dictionary has this key while the listener runs on it.
    private static let running = "dev.dollop.log"

    private static func set(_ box: Box?, _ level: UInt32) throws {
        // The native call below would wait for this thread.
        if Thread.current.threadDictionary[running] != nil {
            throw DollopError(status: .busy, message: "the log cannot be changed from its own listener")
        }
        // The native library calls the previous listener until the call returns, so it is released after that.
        let previous = try current { (held: inout Box?) -> Box? in
            try check(dollop_set_log(box == nil ? nil : callback, box.map { Unmanaged.passUnretained($0).toOpaque() }, level))
            defer { held = box }
            return held
        }
        withExtendedLifetime(previous) {}
    }

    private static var callback: dollop_log_callback {
        { level, target, message, user in
            guard let target, let message, let user, let level = LogLevel(rawValue: level) else { return }
            let box = Unmanaged<Box>.fromOpaque(user).takeUnretainedValue()
            let thread = Thread.current.threadDictionary
            thread[DollopLog.running] = true
            box.receive(level, String(cString: target), String(cString: message))
            thread[DollopLog.running] = nil
        }
    }
}
