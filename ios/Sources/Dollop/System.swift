// What Apple's systems say, and what they ask for: the only file that names them. None of it compiles on Linux.
import Dispatch
import Foundation

#if canImport(UIKit)
import UIKit
#endif

/// Calls a closure whenever something happens, until what it returns is called.
typealias Listen = (@escaping @Sendable () -> Void) -> () -> Void

/// Where this system says what of memory.
var systemMemoryEvents: [(MemoryEvent, Listen)] {
    var sources: [(MemoryEvent, Listen)] = []
    #if canImport(Darwin)
    sources += [
        (.pressureNormal, pressure(.normal)),
        (.pressureWarning, pressure(.warning)),
        (.pressureCritical, pressure(.critical)),
    ]
    #endif
    #if canImport(UIKit) && !os(watchOS)
    sources += [
        (.pressureCritical, notification(UIApplication.didReceiveMemoryWarningNotification)),
        (.enteredBackground, notification(UIApplication.didEnterBackgroundNotification)),
        (.entersForeground, notification(UIApplication.willEnterForegroundNotification)),
    ]
    #endif
    return sources
}

#if canImport(Darwin)
private func pressure(_ level: DispatchSource.MemoryPressureEvent) -> Listen {
    { happened in
        let source = DispatchSource.makeMemoryPressureSource(eventMask: level, queue: .global())
        source.setEventHandler { happened() }
        source.activate()
        return { source.cancel() }
    }
}
#endif

#if canImport(UIKit) && !os(watchOS)
private func notification(_ name: Notification.Name) -> Listen {
    { happened in
        let observer = NotificationCenter.default.addObserver(forName: name, object: nil, queue: nil) { _ in happened() }
        return { NotificationCenter.default.removeObserver(observer) }
    }
}

/// Saves a chat whenever the app goes to the background, for as long as this lives.
///
/// The answer that is being generated is stopped, and is saved as far as it came. The system is asked for the time that takes; if
/// it gives none, the older file stays.
public final class BackgroundSaver: Sendable {
    private let endListening = Protected<() -> Void>({})

    /// Saves until this is released, or the chat is, which this does not keep.
    ///
    /// - Parameters:
    ///   - chat: what to stop and to save.
    ///   - url: the file.
    ///   - onSave: hears the bytes written, or why saving failed.
    public init(_ chat: ChatSession, to url: URL, onSave: (@Sendable (Result<UInt64, any Error>) -> Void)? = nil) {
        let end = notification(UIApplication.didEnterBackgroundNotification)({ [weak chat] in
            guard let chat else { return }
            ProcessInfo.processInfo.performExpiringActivity(withReason: "Saving a conversation") { expired in
                if expired { return }
                // The activity lasts until this block returns; it runs on a thread of the system that may wait.
                let saved = DispatchSemaphore(value: 0)
                Task {
                    do {
                        onSave?(.success(try await chat.stopAndSave(to: url)))
                    } catch {
                        onSave?(.failure(error))
                    }
                    saved.signal()
                }
                saved.wait()
            }
        })
        endListening { $0 = end }
    }

    deinit { endListening { $0() } }
}
#endif
